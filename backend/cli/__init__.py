"""The commands of `transfiner`."""
