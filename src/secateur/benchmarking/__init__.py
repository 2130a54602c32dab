"""Latency, accuracy and size of files, networks and layers; one timing protocol for all."""
