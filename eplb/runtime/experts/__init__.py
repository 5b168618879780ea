"""Grouped FFNs of a rank's experts on a GPU, and the timed trial that chooses between them."""
