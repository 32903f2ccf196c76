"""What the service costs beside the bare predictor."""
