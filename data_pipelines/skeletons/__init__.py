"""Every source of skeletons, pose models, and extraction with them."""
