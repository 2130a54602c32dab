"""Turns a run's records into a page for people, without torch and without running a network.

The changes of layers and images that a page shows are made of files and logits, by
:func:`secateur.report.layer_changes.layer_changes` and
:func:`secateur.report.image_changes.image_changes`.
"""

from secateur.report.render import render_report, write_report
from secateur.report.summary import summary_table

__all__ = ["render_report", "summary_table", "write_report"]
