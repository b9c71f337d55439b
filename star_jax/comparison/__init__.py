"""Several runs side by side: methods over seeds, and ablations."""
