"""Training: the loop, its steps and state, checkpoints, metrics and the files of a run."""
