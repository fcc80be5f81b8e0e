"""Training: the state and its one step, the loop, averages, checkpoints, the log."""
