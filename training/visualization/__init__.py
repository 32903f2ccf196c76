"""Pictures of predictions, and the charts of reports."""
