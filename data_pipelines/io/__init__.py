"""Files, URLs, frames and videos, and what a terminal shows; knows no dataset."""
