"""Plans and loads that the tests inside the engines share; knows no engine."""

import numpy as np

import eplb
from eplb import ExpertLoad, ModelShape, Placement, Plan, Topology

NUM_LAYERS = 3
NUM_EXPERTS = 16
DENSE_LAYERS = 2
SHAPE = ModelShape(
    NUM_LAYERS,
    NUM_EXPERTS,
    moe_layer_ids=tuple(range(DENSE_LAYERS, DENSE_LAYERS + NUM_LAYERS)),
    num_hidden_layers=DENSE_LAYERS + NUM_LAYERS,
)


def a_load(seed: int) -> ExpertLoad:
    """Skewed counts of SHAPE: the hottest expert gets about twenty times the mean of the coldest half."""
    tokens = np.random.default_rng(seed).lognormal(6, 1, (1, NUM_LAYERS, NUM_EXPERTS)).round()
    return ExpertLoad(tokens, shape=SHAPE)


def a_machine(num_ranks: int, *, slots_per_rank: int, num_nodes: int = 1) -> Topology:
    return Topology(num_nodes, num_ranks // num_nodes, slots_per_rank)


def a_plan(num_ranks: int, *, slots_per_rank: int, num_nodes: int = 1, seed: int = 0) -> Plan:
    """A plan for a load; no rank holds an expert twice."""
    return eplb.plan(a_load(seed), a_machine(num_ranks, slots_per_rank=slots_per_rank, num_nodes=num_nodes), "greedy")


def doubled(placement: Placement) -> Placement:
    """The placement with a copy in slot 0 of what slot 1 of the same rank holds, and slot 0's expert elsewhere.

    The slot that gives way belongs to an expert with another copy, so every expert still lives.
    """
    rows = placement.physical_to_logical_map.copy()
    for layer, row in enumerate(rows):
        lost, kept = row[0], row[1]
        spare = next(
            slot
            for slot in range(2, row.size)
            if placement.logical_replica_count[layer, row[slot]] > 1 and row[slot] not in (lost, kept)
        )
        row[0], row[spare] = kept, lost
    return Placement(rows, placement.num_experts, placement.topology)
