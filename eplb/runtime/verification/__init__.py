"""Executes a placement on real processes and checks the result."""
