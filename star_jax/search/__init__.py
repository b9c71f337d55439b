"""Search among embedded tracklets, and its web page."""
