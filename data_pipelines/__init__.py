"""From dataset files to batches: indices, skeletons, packed records, sampling and loading."""
