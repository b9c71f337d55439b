"""The generated dataset: people who do not exist."""
