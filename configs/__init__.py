"""Experiment configs, one ml_collections file each."""
