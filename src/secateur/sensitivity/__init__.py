"""Evaluating many masked versions of one network on the same images."""
