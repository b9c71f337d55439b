"""Experiments, one ml_collections file each."""
