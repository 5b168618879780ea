"""What every process observed of a layer, and the reference values recomputed from it.

    T tokens   K choices   E logical experts   P slots   R ranks   M rows of one process   H hidden

Concatenated over processes, tokens and slots are in the order of ranks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.dispatch.engine_rules import expected_rank_load
from eplb.runtime.layer.replica_choice import TokenSource
from eplb.runtime.verification.probe_experts import probe_weight


@final
@dataclass(frozen=True)
class Refused:
    """An exchange that the runtime refused, with its error message."""

    error: str


@final
@dataclass(frozen=True)
class ModeSeen:
    """The observations of one process in one exchange mode."""

    kept_TK: Tensor
    """[T, K] slots of the selections that were sent, -1 for the others."""
    dropped_P: Tensor
    """[P] selections that the process dropped, by slot."""
    rows_per_slot_S: Tensor
    stamp_M3: Tensor
    """[M, 3] slot, source rank and token index of every row that an expert received."""
    num_poisoned: int
    """Number of values in dispatched rows and results that are not finite."""
    exact_TH: Tensor
    """[T, H] result for integer hidden states."""
    real_TH: Tensor
    """[T, H] result for real hidden states."""
    dispatch_RR: Tensor
    combine_RR: Tensor


@final
@dataclass(frozen=True)
class LayerSeen:
    """The observations of one process in one layer."""

    epoch: int
    phy2log_P: Tensor
    log2phy_EX: Tensor
    logcnt_E: Tensor
    expert_ids_TK: Tensor
    weight_TK: Tensor
    rank_T: Tensor
    index_T: Tensor
    slot_TK: Tensor
    exact_x_TH: Tensor
    real_x_TH: Tensor
    fingerprints: list[int]
    """64 bits of the weight in each slot of the process."""
    recorded_E: Tensor
    """[E] load that the process recorded for planning."""
    modes: Mapping[str, ModeSeen | Refused]
    migrated_TH: Tensor
    """[T, H] result for integer hidden states after a migration to other maps; fixed order."""
    migrated_epoch: int
    graph_error: str
    """Error of a replayed CUDA graph; empty if there is none or no graph."""


@final
@dataclass(frozen=True)
class LayerCase:
    """One layer: its placement, rule and the observations of all processes."""

    placement: Placement
    layer: int
    rule: DispatchRule
    seen: list[LayerSeen]
    may_drop: bool

    @cached_property
    def expert_ids_TK(self) -> Tensor:
        """[T, K] of all processes."""
        return torch.cat([seen.expert_ids_TK for seen in self.seen])

    @cached_property
    def slot_TK(self) -> Tensor:
        """[T, K] chosen slots of all processes."""
        return torch.cat([seen.slot_TK for seen in self.seen])

    @cached_property
    def source(self) -> TokenSource:
        """Sources of all tokens."""
        ranks = torch.cat([seen.rank_T for seen in self.seen])
        return TokenSource(ranks, torch.cat([seen.index_T for seen in self.seen]))

    @cached_property
    def source_tokens(self) -> NDArray[np.int64]:
        """[R, E] selections by source rank and expert, recomputed."""
        counts = np.zeros((self.placement.topology.num_ranks, self.placement.num_experts), dtype=np.int64)
        ranks = self.source.rank_T[:, None].expand_as(self.expert_ids_TK)[self.expert_ids_TK >= 0]
        np.add.at(counts, (ranks.numpy(), self.expert_ids_TK[self.expert_ids_TK >= 0].numpy()), 1)
        return counts

    @cached_property
    def predicted_R(self) -> NDArray[np.float64]:
        """[R] expected rows of each rank under the dispatch rule."""
        load = self.source_tokens.sum(axis=0)
        return expected_rank_load(self.placement, self.layer, load, self.rule, self.source_tokens)

    @cached_property
    def measured_R(self) -> NDArray[np.int64]:
        """[R] rows sent to each rank, as counted by the processes in the first mode that ran."""
        slots = np.zeros(self.placement.num_slots, dtype=np.int64)
        for _, modes in modes_seen(self):
            slots += torch.cat([mode.rows_per_slot_S for mode in modes]).numpy()
            slots += torch.stack([mode.dropped_P for mode in modes]).sum(dim=0).numpy()
            break
        return np.add.reduceat(slots, self.placement.topology.rank_first_slot[:-1])

    def reference(self, x_TH: Tensor) -> Tensor:
        """[T, H] float64 reference output, computed expert by expert from logical weights, without maps."""
        total_TH = torch.zeros_like(x_TH, dtype=torch.float64)
        weight_TK = torch.cat([seen.weight_TK for seen in self.seen]).double()
        for expert in torch.unique(self.expert_ids_TK[self.expert_ids_TK >= 0]).tolist():
            token, choice = (self.expert_ids_TK == expert).nonzero(as_tuple=True)
            weight_HH = probe_weight(self.layer, expert, hidden=x_TH.shape[1]).double()
            total_TH.index_add_(0, token, (x_TH[token].double() @ weight_HH) * weight_TK[token, choice, None])
        return total_TH


def modes_seen(case: LayerCase) -> Iterator[tuple[str, list[ModeSeen]]]:
    """The exchange modes that ran on all processes, each with the observations of every process."""
    for name in case.seen[0].modes:
        modes = [mode for seen in case.seen if isinstance(mode := seen.modes[name], ModeSeen)]
        if len(modes) == len(case.seen):
            yield name, modes
