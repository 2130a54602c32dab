"""A page that runs a packed network in the browser: served on loopback, or written to a folder."""

from secateur.demo.server import serve
from secateur.demo.site import write_site

__all__ = ["serve", "write_site"]
