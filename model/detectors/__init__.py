"""Detectors that the mask head works with."""
