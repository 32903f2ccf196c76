"""Images of tasks: located, fetched within bounds, cached and decoded."""
