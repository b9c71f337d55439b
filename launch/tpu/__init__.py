"""Cloud TPU: programs compiled ahead of time, and scripts that start and stop training."""
