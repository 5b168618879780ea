"""Generates synthetic loads and traces with the statistics of recorded ones."""
