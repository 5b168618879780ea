"""Synthetic loads and traces with the statistics of real ones."""
