"""Latency, accuracy and size of files, networks and layers, with one timing protocol."""
