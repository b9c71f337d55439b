"""What a run leaves: its checkpoints, metrics, config, environment and evaluations."""
