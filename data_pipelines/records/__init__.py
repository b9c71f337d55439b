"""Packing tracklets and reading what is packed."""
