"""The loop: a trigger, a snapshot, a finetuning, the gate, a promotion; one concept a file."""
