"""Placement for dispatch rules under which a replica's share depends on where its siblings are."""
