"""Placement under hard constraints without a solver: a feasible start, then a local search that keeps it feasible."""
