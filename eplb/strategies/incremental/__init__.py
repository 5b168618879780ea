"""Replans that start from a live placement and move few replicas."""
