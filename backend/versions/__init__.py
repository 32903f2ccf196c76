"""Which checkpoint serves a project."""
