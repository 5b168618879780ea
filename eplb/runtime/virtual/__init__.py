"""Executes every rank of a plan, one after the other, on one device."""
