"""Executes a placement on real processes and checks what they did."""
