"""The report of a run: one web page with figures of what was trained, found and looked at."""
