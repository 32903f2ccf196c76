"""Label Studio regions: predictions written, annotations read."""
