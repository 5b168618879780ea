"""Which experts tokens choose together: pair counts, lift, clusters, and whether they hold on later requests."""

from eplb_traces.coactivation.layer_coactivation import (
    CoActivation,
    coactivation,
    coactivations,
    generalising_pairs,
    transitions,
)
from eplb_traces.coactivation.time_split import split

__all__ = ["CoActivation", "coactivation", "coactivations", "generalising_pairs", "split", "transitions"]
