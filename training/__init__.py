"""Data sets, training, evaluation and the learning loop's offline parts."""
