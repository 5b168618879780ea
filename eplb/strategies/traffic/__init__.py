"""Plans for few token copies between nodes and ranks, under a cap on the rank load."""
