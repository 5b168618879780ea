"""Exchange over symmetric memory: every rank writes into the buffers of the others, without a collective."""
