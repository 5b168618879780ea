"""Proven lower bounds on the load of the busiest rank."""
