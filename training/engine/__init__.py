"""The training loop: batches, steps, schedules, state and evaluation on the way."""
