"""Sources of skeletons, pose models, and the extraction of skeletons with them."""
