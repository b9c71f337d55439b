"""Generates a dataset of people who do not exist."""
