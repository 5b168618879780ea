"""Converts the arguments of the public functions to the types of the library."""
