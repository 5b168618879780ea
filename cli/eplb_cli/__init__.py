"""Room 3: the command line. Words in, words out; every number comes from `eplb` and `eplb_traces`."""
