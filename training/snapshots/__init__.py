"""Snapshots of a project's annotations: their format, corrections, reports and annotation cost."""
