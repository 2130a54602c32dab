"""Turns a run's records into a page for people; knows neither torch nor any network."""

from secateur.report.render import write_report
from secateur.report.summary import summary_table

__all__ = ["summary_table", "write_report"]
