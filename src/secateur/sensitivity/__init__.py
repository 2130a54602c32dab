"""Sensitivity scans: evaluate many masked versions of one network on the same images."""
