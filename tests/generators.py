"""Hypothesis strategies for topologies, placements, plans, loads and problems: small, valid, odd in every legal way."""

import dataclasses

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import BindingBound, GroupMode, LayerCertificate, Plan, Problem, SolveStatus
from eplb.core.topology import Topology
from eplb_traces import ExpertLoad, ModelShape

SPEEDS = st.sampled_from([0.5, 0.75, 1.0, 1.25])
# Writing files is slow: six tenths of the cases that the profile asks for.
formats_examples = settings(max_examples=max(1, settings().max_examples * 6 // 10))
POSITIVE = st.floats(min_value=1e-3, max_value=1e9, allow_nan=False)


def node_sizes(num_nodes, most, *, equal=False):
    """Ranks of each node, all equal in some draws, and in all where `equal`."""
    same = st.integers(1, most).map(lambda count: [count] * num_nodes)
    return same if equal else same | st.lists(st.integers(1, most), min_size=num_nodes, max_size=num_nodes)


@st.composite
def topologies(draw, equal=False, min_slots=1, max_ranks=6):
    """Topologies of a few ranks; unless `equal`, ranks may differ in slots and speed and nodes in ranks."""
    num_nodes = draw(st.integers(1, 2))
    ranks_per_node = draw(node_sizes(num_nodes, max(1, max_ranks // num_nodes), equal=equal))
    num_ranks = sum(ranks_per_node)
    least = -(-min_slots // num_ranks)
    if equal or draw(st.booleans()):
        slots, speeds = draw(st.integers(least, least + 3)), None
    else:
        slots = draw(st.lists(st.integers(least, least + 3), min_size=num_ranks, max_size=num_ranks))
        speeds = draw(st.none() | st.lists(SPEEDS, min_size=num_ranks, max_size=num_ranks))
    return Topology(num_nodes, ranks_per_node, slots, speeds, intra_node_gbps=draw(POSITIVE))


@st.composite
def placements(draw, equal=False, holes=False, duplicates=True, weights=False):
    """Placements whose layers all differ: every expert once, the other slots at random, all shuffled.

    `equal`: the same number of slots on every rank; `holes`: some slots may be -1; `duplicates`: a rank may hold an
    expert twice; `weights`: slots may carry shares.
    """
    num_experts = draw(st.integers(1, 8))
    topology = draw(topologies(equal=equal, min_slots=num_experts))
    if not duplicates and max(topology.rank_num_slots) > num_experts:
        topology = Topology(1, 2, num_experts)
    num_layers = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    make = _layer if duplicates else _layer_without_duplicates
    rows = np.stack([make(rng, num_experts, topology) for _ in range(num_layers)])
    if holes:
        rows = _with_holes(rng, rows)
    placement = Placement(rows, num_experts, topology)
    if weights and draw(st.booleans()):
        placement = Placement(rows, num_experts, topology, _shares(rng, placement))
    return placement


def _layer(rng, num_experts, topology):
    extra = rng.integers(0, num_experts, topology.num_slots - num_experts)
    return rng.permutation(np.concatenate([np.arange(num_experts), extra]))


def _layer_without_duplicates(rng, num_experts, topology):
    # Experts go round a random circle; a rank takes its next ones, at most E of them, so none is twice on a rank.
    order = rng.permutation(num_experts)
    return order[np.arange(topology.num_slots) % num_experts]


def _with_holes(rng, rows):
    """Empty some slots whose expert has another one."""
    rows = rows.copy()
    for row in rows:
        for slot in rng.permutation(row.size)[: rng.integers(0, row.size)]:
            if (row == row[slot]).sum() > 1:
                row[slot] = EMPTY_SLOT
    return rows


def _shares(rng, placement):
    raw = rng.integers(1, 9, placement.physical_to_logical_map.shape).astype(np.float64)
    raw[placement.physical_to_logical_map == EMPTY_SLOT] = 0
    for row, ids in zip(raw, placement.physical_to_logical_map, strict=True):
        for expert in range(placement.num_experts):
            row[ids == expert] /= row[ids == expert].sum()
    return raw


@st.composite
def shapes(draw, num_layers, num_experts, layer_ids=False):
    """Models around a placement, with dense layers before, between and behind where `layer_ids`."""
    ids = hidden = None
    if layer_ids:
        gaps = draw(st.lists(st.integers(1, 3), min_size=num_layers, max_size=num_layers))
        ids = tuple(int(i) for i in np.cumsum(gaps) - 1)
        hidden = ids[-1] + 1 + draw(st.integers(0, 2))
    top_k = draw(st.none() | st.integers(1, num_experts))
    groups = num_experts if draw(st.booleans()) else 1
    return ModelShape(num_layers, num_experts, top_k, groups, None, ids, hidden)


@st.composite
def plans(draw, layer_ids=False, **kinds):
    """Plans with or without certificates around `placements(**kinds)`."""
    placement = draw(placements(**kinds))
    shape = draw(shapes(placement.num_layers, placement.num_experts, layer_ids=layer_ids))
    certified = draw(st.booleans())
    layers = [_certificate(draw) for _ in range(placement.num_layers)] if certified else []
    return Plan(
        placement,
        shape,
        draw(st.sampled_from(["greedy", "ilp", "deepseek"])),
        draw(st.sampled_from(SolveStatus)),
        draw(POSITIVE),
        draw(st.integers(0, 2**40)),
        tuple(layers),
        tuple(draw(st.lists(st.text(max_size=12), max_size=2))),
        draw(st.sampled_from(["", "sha256:00ff"])),
    )


def _certificate(draw):
    bound = draw(POSITIVE)
    objective = bound * (1 + draw(st.floats(0, 2)))
    return LayerCertificate(objective, bound, draw(st.sampled_from(BindingBound)), draw(st.sampled_from(SolveStatus)))


@st.composite
def loads(draw, max_windows=3, max_layers=3, max_experts=8):
    """Loads with zeros, ties and large counts, never all zero; integers, so that sums are exact."""
    size = (draw(st.integers(1, max_windows)), draw(st.integers(1, max_layers)), draw(st.integers(1, max_experts)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = draw(st.sampled_from([1, 3, 1000, 10**9]))
    tokens = rng.integers(0, top + 1, size).astype(np.float64)
    tokens[0, 0, 0] += 1
    return ExpertLoad(tokens)


@st.composite
def layer_loads(draw, num_experts):
    """Loads of one layer: equal, tied, skewed, with one huge expert, with one expert only, with none at all."""
    kind = draw(st.sampled_from(["ties", "counts", "skewed", "huge", "equal", "single", "idle"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "ties":
        return rng.integers(0, 4, num_experts).astype(np.float64)
    if kind == "counts":
        return rng.integers(0, draw(st.sampled_from([100, 10**9])), num_experts).astype(np.float64)
    if kind == "equal":
        return np.full(num_experts, 7.0)
    load = rng.lognormal(0, draw(st.sampled_from([0.1, 1.0, 3.0])), num_experts)
    if kind == "huge":
        load[rng.integers(num_experts)] *= 1e6
    if kind == "single":
        load *= np.arange(num_experts) == rng.integers(num_experts)
    return load * 0 if kind == "idle" else load


@st.composite
def ruled_problems(draw, rule, **kinds):
    """Problems under a dispatch rule, some with uneven sources; loads and topologies as `problems(**kinds)` makes."""
    problem, sources = draw(problems(**kinds)), None
    if draw(st.booleans()):
        weight = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=problem.topology.num_ranks)))
        weight = np.resize(weight + (weight.sum() == 0), problem.topology.num_ranks)
        sources = tuple((weight / weight.sum()).tolist())
    return dataclasses.replace(problem, dispatch=rule, sources=sources)


@st.composite
def problems(draw, equal=False, tiny=False):
    """Planning problems; unless `equal`, ranks may differ in slots and speed, or nodes in ranks. Pinned where it fits.

    `tiny`: one layer and one window of at most 5 experts, 3 ranks and 7 slots, for brute force.
    """
    num_nodes = 1 if tiny else draw(st.integers(1, 3))
    ranks_per_node = draw(node_sizes(num_nodes, 3 if tiny else 4, equal=equal))
    num_ranks = sum(ranks_per_node)
    slots = draw(st.integers(1, 7 // num_ranks if tiny else 9))
    # A rank holds an expert once: with s slots it takes s experts of its own node's share.
    per_node = draw(st.integers(slots, slots * min(ranks_per_node)))
    num_experts = min(per_node * num_nodes, 5) if tiny else per_node * num_nodes
    per_rank, speeds = min(slots, num_experts), None
    group_mode = GroupMode.FREE
    if not equal and draw(st.booleans()):
        speeds = draw(st.none() | st.lists(SPEEDS, min_size=num_ranks, max_size=num_ranks))
        least = -(-num_experts // num_ranks)
        size = st.integers(least, min(num_experts, least + 2, 7 // num_ranks if tiny else 99))
        per_rank = draw(st.lists(size, min_size=num_ranks, max_size=num_ranks))
    elif draw(st.booleans()):
        group_mode = GroupMode.PINNED
    divisors = [d for d in range(1, per_node + 1) if per_node % d == 0]
    num_groups = 1 if tiny else num_nodes * draw(st.sampled_from(divisors))
    windows, layers = (1, 1) if tiny else (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    tokens = np.stack([[draw(layer_loads(num_experts)) for _ in range(layers)] for _ in range(windows)])
    tokens[0, -1, -1] += tokens.max() == 0
    topology = Topology(num_nodes, ranks_per_node, per_rank, speeds)
    weights = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=windows, max_size=windows))
    return Problem(ExpertLoad(tokens, weights), topology, num_groups, group_mode)
