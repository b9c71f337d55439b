"""Embedding tracklets with a trained network: packed splits, folders of footage, and arrays."""
