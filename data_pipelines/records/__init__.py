"""Packs tracklets and reads packed ones."""
