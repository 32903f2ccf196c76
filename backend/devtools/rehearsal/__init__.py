"""The learning loop rehearsed: a real Label Studio, a simulated annotator with the truth, rounds, poison, rollback."""
