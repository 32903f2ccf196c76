"""The service with a Label Studio and a ready project beside it."""
