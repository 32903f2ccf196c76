"""The demo: the service, a Label Studio, and projects that are ready to annotate."""
