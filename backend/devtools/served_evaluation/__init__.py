"""`transfiner evaluate --served URL`: what a running API returns, scored beside the raw masks of the same model."""
