"""The hottest experts on every rank, served where the token is."""
