"""Knows what a sound runtime must have done, given what every process saw; runs nothing and talks to nobody.

    T tokens   K choices   E logical experts   P slots   R ranks   M rows of one process   H hidden

Each check gets one layer's observations of all processes and recounts everything from the router's choices and the
placement. Tokens of processes, put one after the other, lie by rank; slots too.
"""

from collections.abc import Callable, Iterator, Mapping
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
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas, online_quotas
from eplb.runtime.verification.probe_experts import probe_weight
from eplb.runtime.weights.fingerprint import fingerprint

TOLERANCE = 1e-5
"""Largest error of float32 results, relative to the largest number of the float64 reference."""


@final
@dataclass(frozen=True)
class Refused:
    """An exchange that the runtime refused."""

    error: str


@final
@dataclass(frozen=True)
class ModeSeen:
    """What one process saw of one exchange mode."""

    kept_TK: Tensor
    """[T, K] slots of the selections that were sent."""
    dropped_P: Tensor
    """[P] selections that the process dropped, by slot."""
    rows_per_slot_S: Tensor
    stamp_M3: Tensor
    """[M, 3] slot, source rank and token index of every row that reached an expert."""
    num_poisoned: int
    """Values of dispatched rows and results that are not finite."""
    exact_TH: Tensor
    """[T, H] result for integer hidden states."""
    real_TH: Tensor
    """[T, H] result for real hidden states."""
    dispatch_RR: Tensor
    combine_RR: Tensor


@final
@dataclass(frozen=True)
class LayerSeen:
    """What one process saw of one layer."""

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
    """[E] the load that the process recorded for planning."""
    modes: Mapping[str, ModeSeen | Refused]
    migrated_TH: Tensor
    """[T, H] result for integer hidden states under other maps, after weights and maps moved; fixed order."""
    migrated_epoch: int
    graph_error: str
    """What a replayed graph did wrong; empty also where there are no graphs."""


@final
@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one layer."""

    check: str
    failure: str
    """What is wrong, in a sentence; empty if nothing."""


@final
@dataclass(frozen=True)
class LayerCase:
    """All there is to judge about one layer."""

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
        """[T, K] slots that were chosen, of all processes."""
        return torch.cat([seen.slot_TK for seen in self.seen])

    @cached_property
    def source(self) -> TokenSource:
        """Sources of all tokens."""
        ranks = torch.cat([seen.rank_T for seen in self.seen])
        return TokenSource(ranks, torch.cat([seen.index_T for seen in self.seen]))

    @cached_property
    def source_tokens(self) -> NDArray[np.int64]:
        """[R, E] selections by source rank and expert, recounted."""
        counts = np.zeros((self.placement.topology.num_ranks, self.placement.num_experts), dtype=np.int64)
        ranks = self.source.rank_T[:, None].expand_as(self.expert_ids_TK)[self.expert_ids_TK >= 0]
        np.add.at(counts, (ranks.numpy(), self.expert_ids_TK[self.expert_ids_TK >= 0].numpy()), 1)
        return counts

    @cached_property
    def predicted_R(self) -> NDArray[np.float64]:
        """[R] rows that the rule in force is expected to give each rank."""
        load = self.source_tokens.sum(axis=0)
        return expected_rank_load(self.placement, self.layer, load, self.rule, self.source_tokens)

    @cached_property
    def measured_R(self) -> NDArray[np.int64]:
        """[R] rows that each rank was sent, as the processes counted them in the first mode that ran."""
        slots = np.zeros(self.placement.num_slots, dtype=np.int64)
        for _, modes in modes_seen(self):
            slots += torch.cat([mode.rows_per_slot_S for mode in modes]).numpy()
            slots += torch.stack([mode.dropped_P for mode in modes]).sum(dim=0).numpy()
            break
        return np.add.reduceat(slots, self.placement.topology.rank_first_slot[:-1])

    def reference(self, x_TH: Tensor) -> Tensor:
        """[T, H] float64 what the layer should give, expert by expert from logical weights, without any map."""
        total_TH = torch.zeros_like(x_TH, dtype=torch.float64)
        weight_TK = torch.cat([seen.weight_TK for seen in self.seen]).double()
        for expert in torch.unique(self.expert_ids_TK[self.expert_ids_TK >= 0]).tolist():
            token, choice = (self.expert_ids_TK == expert).nonzero(as_tuple=True)
            weight_HH = probe_weight(self.layer, expert, hidden=x_TH.shape[1]).double()
            total_TH.index_add_(0, token, (x_TH[token].double() @ weight_HH) * weight_TK[token, choice, None])
        return total_TH


def check_maps(case: LayerCase) -> str:
    """Every process holds the plan's maps, and all hold the same epoch."""
    placement, layer = case.placement, case.layer
    expected = placement.logical_to_physical_map[layer]
    for process, seen in enumerate(case.seen):
        if not np.array_equal(seen.phy2log_P.numpy(), placement.physical_to_logical_map[layer]):
            slot = int(np.flatnonzero(seen.phy2log_P.numpy() != placement.physical_to_logical_map[layer])[0])
            right = placement.physical_to_logical_map[layer, slot]
            return f"process {process} has expert {int(seen.phy2log_P[slot])} in slot {slot}, the plan has {right}"
        if not np.array_equal(seen.logcnt_E.numpy(), placement.logical_replica_count[layer]):
            return f"process {process} counts other replicas than the plan"
        held = seen.log2phy_EX.numpy()
        width = expected.shape[1]
        if not np.array_equal(held[:, :width], expected) or (held[:, width:] != -1).any():
            return f"process {process}: its map from experts to slots is not the inverse of the plan's"
    epochs = [seen.epoch for seen in case.seen]
    return "" if len(set(epochs)) == 1 else f"epochs of the maps by process {epochs}: expected one"


def check_replicas(case: LayerCase) -> str:
    """Every selection went to a slot that holds its expert, and to the one that the rule names, replayed on the CPU."""
    tables = PlacementTables(case.placement, case.rule)
    tables.epoch_L[case.layer] = case.seen[0].epoch
    quota_REX = no_quotas("cpu")
    if case.rule is DispatchRule.ONLINE:
        quota_REX = online_quotas(torch.from_numpy(case.source_tokens), tables, case.layer)
    replayed_TK = choose_slots(case.expert_ids_TK, case.source, tables, case.layer, quota_REX)
    if torch.equal(replayed_TK, case.slot_TK):
        return ""
    token, choice = (replayed_TK != case.slot_TK).nonzero()[0].tolist()
    return (
        f"token {token}, choice {choice} (expert {int(case.expert_ids_TK[token, choice])}) went to slot "
        f"{int(case.slot_TK[token, choice])}: the rule {case.rule} names slot {int(replayed_TK[token, choice])}"
    )


def check_conservation(case: LayerCase) -> str:
    """Each slot computed as many rows as there are selections for it, recounted from the router's choices."""
    for name, modes in modes_seen(case):
        kept_TK = torch.cat([mode.kept_TK for mode in modes])
        expected_P = torch.bincount(kept_TK[kept_TK >= 0], minlength=case.placement.num_slots)
        if case.may_drop:  # the AllGather side drops where rows arrive: those were served as far as the source knows
            dropped_P = torch.stack([mode.dropped_P for mode in modes]).sum(dim=0)
            chosen_P = torch.bincount(case.slot_TK[case.slot_TK >= 0], minlength=case.placement.num_slots)
            expected_P = chosen_P - dropped_P
        rows_P = torch.cat([mode.rows_per_slot_S for mode in modes])
        if not torch.equal(rows_P, expected_P):
            slot = int((rows_P != expected_P).nonzero()[0])
            return f"{name}: slot {slot} computed {int(rows_P[slot])} rows for {int(expected_P[slot])} selections"
        sent = sum(int(mode.dispatch_RR.sum()) for mode in modes)
        rows = int(rows_P.sum())
        if rows and not sent:
            return f"{name}: {rows} rows were computed and no copy was sent"
    return ""


def check_provenance(case: LayerCase) -> str:
    """Every row carries the stamp of the token that chose its slot: no row is another's."""
    for name, modes in modes_seen(case):
        stamp_M3 = torch.cat([mode.stamp_M3 for mode in modes])
        kept_TK = torch.cat([mode.kept_TK for mode in modes])
        token, choice = (kept_TK >= 0).nonzero(as_tuple=True)
        slot = kept_TK[token, choice]
        expected = torch.stack([slot, case.source.rank_T[token], case.source.index_T[token]], dim=1)
        stranger_M = ~torch.isin(_keys(stamp_M3), _keys(expected))
        if bool(stranger_M.any()):
            slot_id, rank, index = stamp_M3[stranger_M][0].tolist()
            return f"{name}: slot {slot_id} computed token {index} of rank {rank}, which did not choose it"
    return ""


def check_poison(case: LayerCase) -> str:
    """No value was read from memory that nobody wrote: receive buffers were filled with NaN before."""
    for name, modes in modes_seen(case):
        for process, mode in enumerate(modes):
            if mode.num_poisoned:
                return f"{name}: process {process} read {mode.num_poisoned} values that nobody had written"
    return ""


def check_numerics(case: LayerCase) -> str:
    """Integer results are the reference's bit by bit, real ones within `TOLERANCE`."""
    exact_TH = torch.cat([seen.exact_x_TH for seen in case.seen])
    expected_TH = case.reference(exact_TH)
    for name, modes in modes_seen(case):
        if case.may_drop and any(int(mode.dropped_P.sum()) for mode in modes):
            continue  # what was dropped is missing from the sum, and counted by `drops`
        found_TH = torch.cat([mode.exact_TH for mode in modes]).double()
        if not torch.equal(found_TH, expected_TH):
            wrong = (found_TH != expected_TH).any(dim=1).nonzero()[:, 0]
            token = int(wrong[0])
            return f"{name}: {wrong.numel()} tokens differ from the reference, the first is token {token}"
    error = max_error(case)
    return "" if error <= TOLERANCE else f"largest error {error:.2e} of real numbers: expected at most {TOLERANCE:.0e}"


def max_error(case: LayerCase) -> float:
    """Largest error of real results over modes, relative to the largest number of the reference."""
    expected_TH = case.reference(torch.cat([seen.real_x_TH for seen in case.seen]))
    scale = float(expected_TH.abs().max()) if expected_TH.numel() else 0.0
    worst = 0.0
    for _, modes in modes_seen(case):
        if scale and not any(int(mode.dropped_P.sum()) for mode in modes):
            found_TH = torch.cat([mode.real_TH for mode in modes]).double()
            error = float((found_TH - expected_TH).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    return worst


def check_weights(case: LayerCase) -> str:
    """Every slot holds the weight of its expert, by fingerprint; replicas are thereby equal."""
    found = [value for seen in case.seen for value in seen.fingerprints]
    hidden = case.seen[0].exact_x_TH.shape[1]
    right: dict[int, int] = {}
    for slot, expert in enumerate(case.placement.physical_to_logical_map[case.layer].tolist()):
        if expert not in right:
            right[expert] = int(fingerprint(probe_weight(case.layer, expert, hidden=hidden)))
        if found[slot] != right[expert]:
            return f"slot {slot} does not hold the weight of expert {expert}"
    return ""


def check_drops(case: LayerCase) -> str:
    """What was chosen was served or is counted as dropped."""
    for name in case.seen[0].modes:
        for seen in case.seen:
            mode = seen.modes[name]
            if isinstance(mode, Refused):
                return f"{name}: {mode.error}"
    for name, modes in modes_seen(case):
        chosen_P = torch.bincount(case.slot_TK[case.slot_TK >= 0], minlength=case.placement.num_slots)
        rows_P = torch.cat([mode.rows_per_slot_S for mode in modes])
        dropped_P = torch.stack([mode.dropped_P for mode in modes]).sum(dim=0)
        lost_P = chosen_P - rows_P - dropped_P
        if bool((lost_P > 0).any()):
            slot = int((lost_P > 0).nonzero()[0])
            return f"{name}: {int(lost_P[slot])} selections of slot {slot} were neither computed nor counted as dropped"
    return ""


def check_load(case: LayerCase) -> str:
    """The recorded logical load is the recount, and each rank got what the rule in force predicts."""
    recorded_E = torch.stack([seen.recorded_E for seen in case.seen]).sum(dim=0).numpy()
    load = case.source_tokens.sum(axis=0)
    if not np.array_equal(recorded_E, load):
        expert = int(np.flatnonzero(recorded_E != load)[0])
        return f"expert {expert}: {recorded_E[expert]} selections were recorded, the router made {load[expert]}"
    excess = np.abs(case.measured_R - case.predicted_R) - _noise(case)
    if (excess > 1e-6).any():
        rank = int(excess.argmax())
        return (
            f"rank {rank} got {case.measured_R[rank]} rows: the rule {case.rule} predicts "
            f"{case.predicted_R[rank]:.1f}, off by more than its noise"
        )
    return ""


def check_migration(case: LayerCase) -> str:
    """After weights and maps moved to another placement, the results are the same bits, one epoch later."""
    expected_TH = case.reference(torch.cat([seen.exact_x_TH for seen in case.seen]))
    found_TH = torch.cat([seen.migrated_TH for seen in case.seen]).double()
    epochs = [seen.migrated_epoch for seen in case.seen]
    if epochs != [seen.epoch + 1 for seen in case.seen]:
        return f"epochs after publishing {epochs}: expected {case.seen[0].epoch + 1} everywhere"
    if not torch.equal(found_TH, expected_TH):
        token = int((found_TH != expected_TH).any(dim=1).nonzero()[0])
        return f"token {token} has another result after the experts moved"
    return ""


def check_graph(case: LayerCase) -> str:
    """A captured graph, replayed with other choices and published maps, gives what eager execution gives."""
    return next((f"process {p}: {seen.graph_error}" for p, seen in enumerate(case.seen) if seen.graph_error), "")


CHECKS: dict[str, Callable[[LayerCase], str]] = {
    "maps": check_maps,
    "weights": check_weights,
    "replicas": check_replicas,
    "conservation": check_conservation,
    "provenance": check_provenance,
    "poison": check_poison,
    "drops": check_drops,
    "numerics": check_numerics,
    "migration": check_migration,
    "load": check_load,
    "graph": check_graph,
}


def judge(case: LayerCase) -> list[Finding]:
    """Make every check of one layer, in the order of CHECKS: causes before what follows from them."""
    return [Finding(name, check(case)) for name, check in CHECKS.items()]


def modes_seen(case: LayerCase) -> Iterator[tuple[str, list[ModeSeen]]]:
    """The exchange modes that ran, each with what every process saw."""
    for name in case.seen[0].modes:
        modes = [mode for seen in case.seen if isinstance(mode := seen.modes[name], ModeSeen)]
        if len(modes) == len(case.seen):
            yield name, modes


def _keys(rows_M3: Tensor) -> Tensor:
    """[M] one number for each (slot, rank, index)."""
    return (rows_M3[:, 0] << 42) + (rows_M3[:, 1] << 28) + rows_M3[:, 2]


def _noise(case: LayerCase) -> NDArray[np.float64]:
    """[R] how far a sound rank may be off: six standard deviations of the hash, none where the rule has no chance.

    vLLM's hash sees only the index, so tokens of one index on all ranks choose alike: their noise adds up. Round robin
    is off by less than one for each source rank and replica.
    """
    placement, topology = case.placement, case.placement.topology
    num_ranks = topology.num_ranks
    if case.rule in (DispatchRule.ONLINE, DispatchRule.ASCEND, DispatchRule.SGLANG_STATIC):
        return np.zeros(num_ranks)
    count = placement.logical_replica_count[case.layer]
    expert_P = placement.physical_to_logical_map[case.layer]
    load = case.source_tokens.sum(axis=0)
    copied_P = (expert_P >= 0) & (count[expert_P] > 1)
    variance_P = np.where(copied_P, load[expert_P] / 4, 0.0)  # p (1 - p) is at most 1/4
    per_rank = np.add.reduceat(variance_P, topology.rank_first_slot[:-1])
    copies = np.add.reduceat(copied_P.astype(np.float64), topology.rank_first_slot[:-1])
    if case.rule is DispatchRule.TRTLLM:
        blocks = -(-case.expert_ids_TK.numel() // 1024)
        return copies * (num_ranks + blocks)
    alike = num_ranks if case.rule is DispatchRule.VLLM else 1
    return 6 * np.sqrt(per_rank * alike) + copies
