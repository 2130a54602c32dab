"""Pruning: dependent channels, importance, plans, masks and removal."""
