"""Resumable training, evaluation, and faster layers on CPUs."""
