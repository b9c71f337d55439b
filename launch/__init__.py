"""Commands: prepare, train, eval."""
