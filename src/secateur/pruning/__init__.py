"""Pruning: what must go together, what matters least, which to mask, and taking it out."""
