"""Annotations of a project frozen as a training set."""
