"""Counts large sets of trace files, shard by shard, on the threads of a machine or on a Ray cluster."""
