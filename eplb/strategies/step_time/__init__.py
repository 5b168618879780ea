"""Plans for the predicted step time of the slowest rank: which experts get replicas, and where they lie."""
