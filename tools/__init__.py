"""Programs that maintain the repository: ``python -m tools NAME``."""
