"""The published study set beside ours: from finished cells to tables, figures and a page."""
