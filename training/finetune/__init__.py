"""Finetuning the serving model on snapshots of corrections. Importing this package imports no torch."""
