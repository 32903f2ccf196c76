"""Commands of people who train: data, snapshots, finetuning, judging."""
