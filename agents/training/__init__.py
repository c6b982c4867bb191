"""Training code that all agents share: the loop, run folders, checkpoints, ranks, progress."""
