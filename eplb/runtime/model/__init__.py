"""Puts a Hugging Face model's experts on the ranks of a plan."""
