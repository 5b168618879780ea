"""The command line. It computes nothing: every number comes from `eplb` and `eplb_traces`."""
