"""Load, faults, rehearsals and benchmarks of the service: tools for its developers, never imported by the product."""
