"""Commands for footage of your own: tracklets of videos, and their skeletons."""
