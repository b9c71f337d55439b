"""Commands: prepare, train, eval, verify and others."""
