"""Makes small problems of many kinds: ties, idle experts, empty layers, several windows, unequal ranks and nodes."""

from collections.abc import Iterator

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb_traces import ExpertLoad


def problems(count: int, seed: int = 0) -> Iterator[Problem]:
    """So many problems; the same seed gives the same ones. Every fourth has ranks of different slots and speeds."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        topology = _unequal(rng) if number % 4 == 3 else _equal(rng)
        most_slots = int(topology.rank_num_slots.max())
        num_experts = int(rng.integers(most_slots, topology.num_slots + 1))
        tokens = _tokens(rng, number, (int(rng.integers(1, 4)), int(rng.integers(1, 4)), num_experts))
        load = ExpertLoad(tokens, rng.choice([0.5, 1.0, 2.0], len(tokens)))
        yield Problem(load.without_empty_windows(), topology)


def _equal(rng: np.random.Generator) -> Topology:
    num_nodes, ranks_per_node, slots = (int(n) for n in (rng.integers(1, 3), rng.integers(1, 5), rng.integers(1, 6)))
    return Topology(num_nodes, ranks_per_node, slots)


def _unequal(rng: np.random.Generator) -> Topology:
    ranks_of_node = rng.integers(1, 4, 2).tolist()
    num_ranks = sum(ranks_of_node)
    slots = rng.integers(1, 5, num_ranks).tolist()
    return Topology(2, ranks_of_node, slots, rng.choice([0.5, 1.0, 1.25], num_ranks).tolist())


def _tokens(rng: np.random.Generator, number: int, shape: tuple[int, int, int]) -> Floats:
    """[W, L, E] tokens: by turns heavy-tailed, with ties, with idle experts, and with a layer without load."""
    kind = number % 3
    tokens: Floats = np.round(rng.lognormal(3, 1.5, shape)) if kind == 0 else rng.integers(0, 4, shape).astype(float)
    if kind == 2:
        tokens[:, 0] = 0.0
    tokens[0, -1, 0] += 1.0  # never a load of zeros alone
    return tokens
