"""The default strategy for one load vector: replicate, pack, improve by local search."""
