"""Measures what the cost model needs on the machine it runs on."""
