"""How files and layers are timed, and what they cost: one protocol for all."""
