"""The published study: its cells, its tables and figures, and the page that shows them.

Except for ``grid``, ``overfit``, ``demonstration`` and ``forecast``, it reads records and decisions
only, without torch.
"""
