"""Masks to editable polygons with a certified tolerance, and back."""
