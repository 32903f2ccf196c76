"""The HTTP application: one file a resource. Imports no torch."""
