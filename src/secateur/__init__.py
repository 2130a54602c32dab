"""Prunes and quantizes image classifiers, and proves what that cost."""

__version__ = "0.1.0"
