"""File formats of eplb for loads and traces, and atomic writing."""
