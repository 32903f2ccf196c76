"""Checkpoints: stored, verified, downloaded and imported. Importing this package imports no torch."""
