"""The published study: its cells, its tables and figures, and the page that shows them.

From ``cells`` on it reads records and decisions only, and knows neither torch nor any network.
"""
