"""Commands of people who run the service: its processes, its checkpoints and versions."""
