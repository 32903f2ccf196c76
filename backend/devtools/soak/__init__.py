"""Breaking the running service on purpose, and measuring it under load: `transfiner soak` and `transfiner load`."""
