"""From a load to a plan: choose a strategy, rebalance, replan without lost ranks, size the redundancy."""
