"""Replacements for the engines' own planners, with the same signatures, and placements in the engines' form."""
