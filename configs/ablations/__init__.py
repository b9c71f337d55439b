"""Grids of launch/ablate.py, one file each."""
