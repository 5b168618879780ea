"""Checks a plan from its arrays alone, and its claims against the judge. Raises AssertionError with what is wrong."""

from itertools import pairwise

import numpy as np

import eplb
from eplb.core.dispatch_rule import EVEN_RULES
from eplb.core.placement import EMPTY_SLOT
from tests.fuzz.cases import Case

ROUNDING = 1e-8


def check(case: Case, made: eplb.Plan) -> None:
    """Layout, claims and bounds of what was planned for a case."""
    rows = made.placement.physical_to_logical_map
    assert made.placement.topology == case.topology, "another topology"
    for layer, row in enumerate(rows.tolist()):
        check_layer(case, row, [] if case.previous is None else case.previous.physical_to_logical_map[layer].tolist())
    check_claims(case, made)


def check_layer(case, row, before):
    """Every expert has a slot; slots are full and without duplicates on a rank, unless the live map had none such."""
    num_experts, topology = case.load.num_experts, case.topology
    assert set(row) - {EMPTY_SLOT} == set(range(num_experts)), f"experts {row}"
    assert EMPTY_SLOT not in row or EMPTY_SLOT in before, f"an empty slot {row}"
    first = topology.rank_first_slot.tolist()
    held = [[e for e in row[a:b] if e != EMPTY_SLOT] for a, b in pairwise(first)]
    had = [before[a:b] for a, b in pairwise(first)]
    for rank, experts in enumerate(held):
        for expert in set(experts):
            most = max(1, had[rank].count(expert)) if before else 1
            assert experts.count(expert) <= most or case.strategy == "deepseek", f"rank {rank} holds {experts}"
    ranks_of = [[rank for rank, own in enumerate(held) if expert in own] for expert in range(num_experts)]
    nodes_of = [{int(topology.node_of_rank[rank]) for rank in ranks} for ranks in ranks_of]
    if case.options.get("group_mode") == "pinned":
        size = num_experts // case.options["groups"]
        for group in range(case.options["groups"]):
            homes = set().union(*nodes_of[group * size : (group + 1) * size])
            assert len(homes) == 1, f"group {group} on nodes {homes}"
    survive = case.options.get("survive")
    for expert in range(num_experts):
        if survive == "node":
            assert len(nodes_of[expert]) > 1, f"expert {expert} on nodes {nodes_of[expert]}"
        if survive == "rank":
            assert len(ranks_of[expert]) > 1, f"expert {expert} on ranks {ranks_of[expert]}"


def check_claims(case, made):
    """The objective is what the judge finds, and for even rules what plain sums give; no bound is above it."""
    judged = eplb.evaluate(made.placement, case.load, case.rule, sources=case.options.get("sources"))
    if str(case.rule) == "online":  # the judge splits every window anew, the claim is for the sum
        total = eplb.ExpertLoad(case.load.total[None], shape=case.load.shape)
        judged = eplb.evaluate(made.placement, total, case.rule)
    times = judged.total_rank_time.max(axis=1)
    assert len(made.layers) == len(times), "no certificates"
    for layer, (claim, time) in enumerate(zip(made.layers, times.tolist(), strict=True)):
        place = f"layer {layer}: {claim}, the judge finds {time}"
        assert abs(claim.objective - time) <= ROUNDING * time, place
        assert 0 <= claim.lower_bound <= time * (1 + ROUNDING), place
        assert claim.lower_bound > 0 or time == 0, place
        if case.rule in EVEN_RULES:
            own = busiest_even(made.placement.physical_to_logical_map[layer], case.load.total[layer], case.topology)
            assert abs(own - time) <= ROUNDING * time, f"{place}, plain sums give {own}"


def busiest_even(row, load, topology):
    """Time of the busiest rank by plain sums."""
    count = np.bincount(row[row != EMPTY_SLOT], minlength=load.size)
    speed = np.ones(topology.num_ranks) if topology.rank_speed is None else np.array(topology.rank_speed)
    time = np.zeros(topology.num_ranks)
    for slot, expert in enumerate(row.tolist()):
        if expert != EMPTY_SLOT:
            time[topology.rank_of_slot[slot]] += load[expert] / count[expert]
    return float((time / (speed / speed.mean())).max())
