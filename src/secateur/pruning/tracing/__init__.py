"""Runs a network once with labeled channels to find dependent ones."""
