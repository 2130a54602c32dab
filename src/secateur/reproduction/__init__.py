"""The published study set beside ours: from finished cells to tables, figures and a page.

Reads records and decisions, and knows neither torch nor any network.
"""

from secateur.reproduction.page import write_reproduction

__all__ = ["write_reproduction"]
