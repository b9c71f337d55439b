"""Raw videos to tracklets: people are detected, tracked and cropped."""
