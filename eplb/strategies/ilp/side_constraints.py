"""Adds hard side constraints and pinned groups to a model, as linear constraints over "expert e is on rank r"."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from eplb.strategies.ilp.region import Region

ROOM_BITS = 30
"""Bytes that are not whole become integers of so many bits, in units of a power of two; experts are rounded up."""
MOST_EXACT_BYTES = 2.0**50

Variable = Any  # CP-SAT's own objects are untyped


def add_side_constraints(
    model: Variable, region: Region, holds: Callable[[int, int], Variable]
) -> dict[tuple[int, int], Variable]:
    """Add the region's constraints.

    Parameters
    ----------
    model
        The `CpModel`.
    region
        Its experts, ranks and constraints.
    holds
        Gives 1 as an expression if an expert lies on the region's rank of that place.

    Returns
    -------
    dict
        For pinned groups the variable of each (group, node): whether the group lives there; empty otherwise.
    """
    asked = region.constraints
    _add_fixed(model, region, holds)
    for place in range(len(region.ranks)):
        for members in asked.apart:
            model.add(sum(holds(expert, place) for expert in members if expert in region.choices) <= 1)
        for members in asked.together:
            present = [expert for expert in members if expert in region.choices]
            for first, second in pairwise(present):
                model.add(holds(first, place) == holds(second, place))
    if asked.expert_bytes is not None:
        _add_memory(model, region, holds)
    if region.group_of_expert is None:
        return {}
    return _add_homes(model, region, holds)


def _add_fixed(model: Variable, region: Region, holds: Callable[[int, int], Variable]) -> None:
    """What is pinned to a rank, replicated everywhere or forbidden on a rank."""
    asked = region.constraints
    place_of = {rank: place for place, rank in enumerate(region.ranks)}
    for pairs, wanted in ((asked.pin, 1), (asked.forbid, 0)):
        for expert, rank in pairs:
            if rank in place_of and expert in region.choices:
                model.add(holds(expert, place_of[rank]) == wanted)
    for expert in set(asked.replicate_everywhere) & region.choices.keys():
        for place in place_of.values():
            model.add(holds(expert, place) == 1)


def _add_memory(model: Variable, region: Region, holds: Callable[[int, int], Variable]) -> None:
    room = region.constraints.bytes_of_ranks(max(region.ranks) + 1)
    size = region.constraints.bytes_of_experts(region.load.size)
    whole = bool((size == size.round()).all()) and size.sum() < MOST_EXACT_BYTES
    for place, rank in enumerate(region.ranks):
        unit = 1.0 if whole else 2.0 ** (math.ceil(math.log2(max(room[rank], size.max()))) - ROOM_BITS)
        units = {expert: math.ceil(float(size[expert]) / unit) for expert in region.choices}
        most = math.floor(min(float(room[rank]), MOST_EXACT_BYTES) / unit)
        model.add(sum(units[expert] * holds(expert, place) for expert in region.choices) <= most)


def _add_homes(
    model: Variable, region: Region, holds: Callable[[int, int], Variable]
) -> dict[tuple[int, int], Variable]:
    """Every group on one node, equally many on each."""
    group_of_expert, node_of_rank = region.group_of_expert or (), region.node_of_rank or ()
    nodes, groups = range(max(node_of_rank) + 1), range(max(group_of_expert) + 1)
    home = {(group, node): model.new_bool_var("") for group in groups for node in nodes}
    for group in groups:
        model.add_exactly_one(home[group, node] for node in nodes)
    for node in nodes:
        model.add(sum(home[group, node] for group in groups) == len(groups) // len(nodes))
    for expert in region.choices:
        for place, node in enumerate(node_of_rank):
            model.add(holds(expert, place) <= home[group_of_expert[expert], node])
    return home
