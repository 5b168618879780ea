"""Checks the observations of a layer: each check recomputes one property that a correct runtime has.

    T tokens   K choices   E logical experts   P slots   R ranks   M rows of one process   H hidden

Each check receives the observations of all processes and recomputes the expected values from the router's choices and
the placement. It returns a sentence about the first error, or an empty text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.dispatch_rule import FIXED_SLOT_RULES, DispatchRule
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import choose_slots, no_quotas, online_quotas
from eplb.runtime.verification.observations import LayerCase, Refused, modes_seen
from eplb.runtime.verification.probe_experts import probe_weight
from eplb.runtime.weights.fingerprint import fingerprint

TOLERANCE = 1e-5
"""Largest error of float32 results, relative to the largest number of the float64 reference."""


@final
@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one layer."""

    check: str
    failure: str
    """A sentence about the error; empty if the check passed."""


def check_maps(case: LayerCase) -> str:
    """Every process has the maps of the plan, and all have the same epoch."""
    placement, layer = case.placement, case.layer
    expected = placement.logical_to_physical_map[layer]
    for process, seen in enumerate(case.seen):
        if not np.array_equal(seen.phy2log_P.numpy(), placement.physical_to_logical_map[layer]):
            slot = int(np.flatnonzero(seen.phy2log_P.numpy() != placement.physical_to_logical_map[layer])[0])
            right = placement.physical_to_logical_map[layer, slot]
            return f"process {process} has expert {int(seen.phy2log_P[slot])} in slot {slot}, the plan has {right}"
        if not np.array_equal(seen.logcnt_E.numpy(), placement.logical_replica_count[layer]):
            return f"process {process} has other replica counts than the plan"
        held = seen.log2phy_EX.numpy()
        width = expected.shape[1]
        if not np.array_equal(held[:, :width], expected) or (held[:, width:] != -1).any():
            return f"process {process}: its map from experts to slots is not the inverse of the plan's"
    epochs = [seen.epoch for seen in case.seen]
    return "" if len(set(epochs)) == 1 else f"epochs of the maps by process {epochs}: expected one"


def check_replicas(case: LayerCase) -> str:
    """Every selection went to the slot that the rule chooses, replayed on the CPU."""
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
    """Each slot computed as many rows as there are selections for it, recomputed from the router's choices."""
    for name, modes in modes_seen(case):
        kept_TK = torch.cat([mode.kept_TK for mode in modes])
        expected_P = torch.bincount(kept_TK[kept_TK >= 0], minlength=case.placement.num_slots)
        if case.may_drop:  # AllGather drops rows after they arrive; `kept_TK` of the source still contains them
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
            return f"{name}: {rows} rows were computed but no copy was sent"
    return ""


def check_provenance(case: LayerCase) -> str:
    """Every row has the stamp of a token that chose its slot."""
    for name, modes in modes_seen(case):
        stamp_M3 = torch.cat([mode.stamp_M3 for mode in modes])
        kept_TK = torch.cat([mode.kept_TK for mode in modes])
        token, choice = (kept_TK >= 0).nonzero(as_tuple=True)
        slot = kept_TK[token, choice]
        expected = torch.stack([slot, case.source.rank_T[token], case.source.index_T[token]], dim=1)
        unexpected_M = ~torch.isin(_keys(stamp_M3), _keys(expected))
        if bool(unexpected_M.any()):
            slot_id, rank, index = stamp_M3[unexpected_M][0].tolist()
            return f"{name}: slot {slot_id} computed token {index} of rank {rank}, which did not choose it"
    return ""


def check_poison(case: LayerCase) -> str:
    """No uninitialised value was read; receive buffers were filled with NaN before."""
    for name, modes in modes_seen(case):
        for process, mode in enumerate(modes):
            if mode.num_poisoned:
                return f"{name}: process {process} read {mode.num_poisoned} uninitialised values"
    return ""


def check_numerics(case: LayerCase) -> str:
    """Integer results equal the reference bit by bit, real results within `TOLERANCE`."""
    exact_TH = torch.cat([seen.exact_x_TH for seen in case.seen])
    expected_TH = case.reference(exact_TH)
    for name, modes in modes_seen(case):
        if case.may_drop and any(int(mode.dropped_P.sum()) for mode in modes):
            continue  # dropped selections are missing from the sum; the check `drops` counts them
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
    """Every slot has the weight of its expert, by fingerprint; so replicas are equal."""
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
    """Every selection was computed or is counted as dropped."""
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
    """The recorded logical load equals the recomputed one, and each rank received the rows that the rule predicts."""
    recorded_E = torch.stack([seen.recorded_E for seen in case.seen]).sum(dim=0).numpy()
    load = case.source_tokens.sum(axis=0)
    if not np.array_equal(recorded_E, load):
        expert = int(np.flatnonzero(recorded_E != load)[0])
        return f"expert {expert}: {recorded_E[expert]} selections were recorded: the router made {load[expert]}"
    excess = np.abs(case.measured_R - case.predicted_R) - _noise(case)
    if (excess > 1e-6).any():
        rank = int(excess.argmax())
        return (
            f"rank {rank} got {case.measured_R[rank]} rows: the rule {case.rule} predicts "
            f"{case.predicted_R[rank]:.1f}, the difference exceeds its noise"
        )
    return ""


def check_migration(case: LayerCase) -> str:
    """After a migration to another placement the results have the same bits, and the epoch is one higher."""
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
    """A captured graph, replayed with other choices and maps, gives the result of eager execution."""
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
MEANINGS: dict[str, str] = {
    "maps": "every process has the maps of the plan, of the same epoch",
    "weights": "each slot holds the weight of its expert",
    "replicas": "each token goes to the replica that the dispatch rule names",
    "conservation": "every choice of the router is executed exactly once",
    "provenance": "each row comes from the token that it claims",
    "poison": "no value that is not finite reaches an expert or a result",
    "drops": "dropped choices are counted",
    "numerics": "results equal a float64 reference",
    "migration": "results stay right after weights and maps have moved",
    "load": "the recorded load is that of the router",
    "graph": "a replayed CUDA graph computes the same",
}
"""What each check proves."""


def judge(case: LayerCase) -> list[Finding]:
    """Apply every check to one layer, in the order of CHECKS: causes before consequences."""
    return [Finding(name, check(case)) for name, check in CHECKS.items()]


def _keys(rows_M3: Tensor) -> Tensor:
    """[M] one number for each (slot, rank, index)."""
    return (rows_M3[:, 0] << 42) + (rows_M3[:, 1] << 28) + rows_M3[:, 2]


def _noise(case: LayerCase) -> NDArray[np.float64]:
    """[R] largest difference that chance explains: six standard deviations of the hash, 0 for deterministic rules.

    vLLM's hash and SGLang's row depend only on the token index, so tokens of equal index on all ranks choose equally
    and their noise adds up. Round robin differs by less than one for each source rank and replica.
    """
    placement, topology = case.placement, case.placement.topology
    num_ranks = topology.num_ranks
    if case.rule is DispatchRule.ONLINE or case.rule in FIXED_SLOT_RULES:
        return np.zeros(num_ranks)
    count = placement.logical_replica_count[case.layer]
    expert_P = placement.physical_to_logical_map[case.layer]
    load = case.source_tokens.sum(axis=0)
    replicated_P = (expert_P >= 0) & (count[expert_P] > 1)
    variance_P = np.where(replicated_P, load[expert_P] / 4, 0.0)  # p (1 - p) is at most 1/4
    per_rank = np.add.reduceat(variance_P, topology.rank_first_slot[:-1])
    replicas = np.add.reduceat(replicated_P.astype(np.float64), topology.rank_first_slot[:-1])
    if case.rule is DispatchRule.TRTLLM:
        blocks = -(-case.expert_ids_TK.numel() // 1024)
        return replicas * (num_ranks + blocks)
    correlated = num_ranks if case.rule in (DispatchRule.VLLM, DispatchRule.SGLANG_BY_ROW) else 1
    return 6 * np.sqrt(per_rank * correlated) + replicas
