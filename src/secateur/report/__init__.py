"""Turns a run's records into a report page, without torch and without running a network.

The shown changes of layers and images are computed from files and logits by
:func:`secateur.report.layer_changes.layer_changes` and
:func:`secateur.report.image_changes.image_changes`.
"""

from secateur.report.render import render_report, write_report
from secateur.report.summary import summary_table

__all__ = ["render_report", "summary_table", "write_report"]
