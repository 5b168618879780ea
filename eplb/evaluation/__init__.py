"""Judges a placement: rank loads, metrics by engine, token spread, failures. Does not know any strategy."""
