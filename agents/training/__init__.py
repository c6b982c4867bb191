"""What the training of every agent shares: the loop, the run folder, checkpoints, ranks, progress."""
