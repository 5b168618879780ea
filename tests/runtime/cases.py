"""Generated batches, the processes that execute them, and the plain loop they are compared with."""

from dataclasses import dataclass

import numpy as np
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime import (
    AllGather,
    AllToAll,
    ExchangeLimits,
    ExchangeOverflowError,
    GateChoice,
    Member,
    Overflow,
    PlacementTables,
    RankGroup,
    Reference,
    TokenSource,
    route,
)

RULES = tuple(DispatchRule)


@dataclass(frozen=True)
class Case:
    placement: Placement
    rule: DispatchRule
    tokens_of_rank: list[int]
    ids_TK: torch.Tensor
    weight_TK: torch.Tensor
    x_TH: torch.Tensor
    scale_EH: torch.Tensor


def make_case(seed: int) -> Case:
    """Shapes, empty slots, co-located replicas, masked choices, empty ranks, one token, all to one expert, by seed."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    num_nodes, ranks_per_node = int(rng.integers(1, 3)), int(rng.integers(2, 5))
    if num_nodes * ranks_per_node < 4:
        num_nodes = 2
    num_ranks = num_nodes * ranks_per_node
    E = int(rng.integers(2, 20))
    spare = int(rng.integers(0, 9))
    S = -(-(E + spare) // num_ranks)
    experts = np.concatenate([np.arange(E), rng.integers(-1 if seed % 3 == 0 else 0, E, num_ranks * S - E)])
    rng.shuffle(experts)
    topology = Topology(num_nodes, ranks_per_node, S)
    bare = Placement(experts[None], E, topology)
    share = rng.integers(0, 4, experts.size) * (experts >= 0) + (
        np.arange(experts.size) == bare.logical_to_physical_map[0, experts.clip(0), 0]
    )
    share = np.where(experts >= 0, share, 0).astype(float)
    share /= np.maximum(np.bincount(experts.clip(0), share, E)[experts.clip(0)], 1e-9)
    placement = Placement(experts[None], E, topology, np.where(experts >= 0, share, 0)[None])
    tokens = rng.integers(0, 7, num_ranks)
    tokens[rng.random(num_ranks) < 0.3] = 0
    match seed % 10:
        case 0:
            tokens[:] = 0
        case 1:
            tokens[:] = np.arange(num_ranks) == seed % num_ranks
    T, K, H = int(tokens.sum()), int(rng.integers(1, min(E, 8) + 1)), int(rng.integers(1, 9))
    ids = torch.rand((T, E), generator=generator).argsort(dim=1)[:, :K]
    if seed % 10 == 2:
        ids[:] = -1
        ids[:, 0] = seed % E
    ids = ids.masked_fill(torch.rand((T, K), generator=generator) < 0.1 * (seed % 4 == 0), -1)
    return Case(
        placement,
        RULES[seed % len(RULES)],
        tokens.tolist(),
        ids,
        torch.randint(0, 9, (T, K), generator=generator) / 8,
        torch.randint(-4, 5, (T, H), generator=generator).float(),
        torch.randint(-3, 4, (E, H), generator=generator).float(),
    )


def crowded_case() -> Case:
    """Four ranks of four experts, and every token chooses the four experts of rank 0."""
    tokens_of_rank, E, K = [6, 4, 0, 5], 16, 4
    T = sum(tokens_of_rank)
    return Case(
        Placement([range(E)], E, Topology(1, 4, 4)),
        DispatchRule.EVEN,
        tokens_of_rank,
        torch.arange(K).repeat(T, 1),
        torch.ones((T, K)),
        torch.ones((T, 3)),
        torch.ones((E, 3)),
    )


def experts_of(case, tables, slots):
    """An expert multiplies each channel by its own number: a row never depends on its neighbours."""

    def forward(x_MH, rows_per_slot_S):
        expert_S = tables.phy2log_LP[0][slots.start : slots.stop]
        return x_MH * torch.repeat_interleave(case.scale_EH.to(x_MH.dtype)[expert_S], rows_per_slot_S, dim=0)

    return forward


def by_loop(case: Case, x_TH: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """The truth without slots, ranks or sorting: token by token, choice by choice."""
    y_TH = torch.zeros_like(x_TH)
    for token in range(len(x_TH)):
        for choice, expert in enumerate(case.ids_TK[token].tolist()):
            if expert >= 0:
                y_TH[token] += (x_TH[token] * case.scale_EH[expert]) * weight_TK[token, choice]
    return y_TH


def own_part(case: Case, group: RankGroup) -> tuple[slice, TokenSource]:
    """This process's tokens."""
    ranks = group.ranks
    first, last = sum(case.tokens_of_rank[: ranks.start]), sum(case.tokens_of_rank[: ranks.stop])
    return slice(first, last), TokenSource.consecutive(
        ranks.start, case.tokens_of_rank[ranks.start : ranks.stop], "cpu"
    )


def execute(backend, case, tables, group, x_TH, weight_TK):
    part, source = own_part(case, group)
    routing = route(GateChoice(case.ids_TK[part], weight_TK[part]), source, tables, 0, group)
    handle = backend.plan_exchange(routing)
    forward = experts_of(case, tables, group.slots)
    y_MH = forward(backend.dispatch(x_TH[part], handle), handle.rows.rows_per_slot_S)
    return backend.combine(y_MH, handle), handle


def backends(group):
    return {
        "allgather": AllGather(group),
        "allgather fixed": AllGather(group, fixed_order=True),
        "alltoall": AllToAll(group),
        "alltoall fixed": AllToAll(group, fixed_order=True),
        "alltoall no dedup": AllToAll(group, dedup=False),
        "alltoall no dedup fixed": AllToAll(group, dedup=False, fixed_order=True),
    }


def run_cases(member: Member, seeds: range) -> list[str]:
    """Execute cases in every mode on this process; what differed from the reference, or that there were no cases."""
    differences = [] if seeds else ["no cases"]
    for seed in seeds:
        case = make_case(seed)
        alone = RankGroup(case.placement.topology)
        group = RankGroup.of(case.placement.topology, member.process_group)
        tables = PlacementTables(case.placement, case.rule)
        part, _ = own_part(case, group)
        generator = torch.Generator().manual_seed(seed)
        real_x_TH = torch.randn(case.x_TH.shape, generator=generator)
        real_weight_TK = torch.rand(case.weight_TK.shape, generator=generator)
        exact, _ = execute(Reference(alone), case, tables, alone, case.x_TH, case.weight_TK)
        real, _ = execute(Reference(alone), case, tables, alone, real_x_TH, real_weight_TK)
        if not torch.equal(exact, by_loop(case, case.x_TH, case.weight_TK)):
            differences.append(f"{seed} reference")
        if not torch.equal(real, by_loop(case, real_x_TH, real_weight_TK)):
            differences.append(f"{seed} reference, real numbers")
        for name, backend in backends(group).items():
            found, _ = execute(backend, case, tables, group, case.x_TH, case.weight_TK)
            if not torch.equal(found, exact[part]):
                differences.append(f"{seed} {name}")
            if "fixed" in name and seed % 2:
                found, _ = execute(backend, case, tables, group, real_x_TH, real_weight_TK)
                if not torch.equal(found, real[part]):
                    differences.append(f"{seed} {name}, real numbers")
    return differences


def run_dtypes(member: Member, seed: int) -> list[str]:
    """bf16 sums of small integers, and float8 rows that only travel."""
    case = make_case(seed)
    group = RankGroup.of(case.placement.topology, member.process_group)
    tables = PlacementTables(case.placement, case.rule)
    part, _ = own_part(case, group)
    wrong = []
    for name, backend in backends(group).items():
        found, handle = execute(backend, case, tables, group, case.x_TH.bfloat16(), case.weight_TK)
        if not torch.equal(found.float(), by_loop(case, case.x_TH, case.weight_TK)[part]):
            wrong.append(f"{name} bf16")
        x_MH = backend.dispatch(case.x_TH[part].to(torch.float8_e4m3fn), handle)
        if not torch.equal(x_MH.float(), backend.dispatch(case.x_TH[part], handle)):
            wrong.append(f"{name} float8")
    return wrong


def run_overflow(member: Member) -> dict[str, tuple[int, int, int, bool]]:
    """Mode -> selections, rows computed, rows dropped, and whether the limits raise when nothing may be dropped."""
    case = crowded_case()
    group = RankGroup.of(case.placement.topology, member.process_group)
    tables = PlacementTables(case.placement)
    outcome = {}
    for name, kind, limits in (
        ("allgather", AllGather, {"topk_scaling_factor": 0.25}),
        ("alltoall", AllToAll, {"buffer_scale_factors": ((0, 0.5),)}),
    ):
        dropping = kind(group, limits=ExchangeLimits(**limits, overflow=Overflow.DROP))
        _, handle = execute(dropping, case, tables, group, case.x_TH, case.weight_TK)
        try:
            execute(kind(group, limits=ExchangeLimits(**limits)), case, tables, group, case.x_TH, case.weight_TK)
            raised = False
        except ExchangeOverflowError:
            raised = True
        part, _ = own_part(case, group)
        rows = int(handle.rows.rows_per_slot_S.sum())
        outcome[name] = (int((case.ids_TK[part] >= 0).sum()), rows, int(handle.dropped_P.sum()), raised)
    return outcome
