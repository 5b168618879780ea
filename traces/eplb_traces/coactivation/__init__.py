"""Counts which experts tokens choose together: pair counts, lift, clusters, and their lift on held-out steps."""

from eplb_traces.coactivation.layer_coactivation import (
    CoActivation,
    coactivation,
    coactivations,
    generalising_pairs,
    transitions,
)
from eplb_traces.coactivation.time_split import split

__all__ = ["CoActivation", "coactivation", "coactivations", "generalising_pairs", "split", "transitions"]
