"""Evaluates a placement: rank loads, metrics by engine, token spread, failures. Imports no strategy."""
