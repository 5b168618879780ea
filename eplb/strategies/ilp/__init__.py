"""Integer models of one layer for OR-tools' CP-SAT, loaded only when the `ilp` strategy runs."""
