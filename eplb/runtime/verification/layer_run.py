"""Executes one layer on one process in every exchange mode and collects the observations.

Letters: T tokens of this process, K choices, H hidden, M rows, R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.errors import InputError
from eplb.runtime.exchange.allgather import AllGather
from eplb.runtime.exchange.alltoall import AllToAll
from eplb.runtime.exchange.limits import ExchangeLimits, ExchangeOverflowError
from eplb.runtime.exchange.protocol import Backend, ExchangeEpochError, RoutingPlan
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.backend import Symmetric
from eplb.runtime.exchange.symmetric.region import BufferSizes
from eplb.runtime.layer.gate import GateChoice, GroupLimit, SigmoidGroupGate, SoftmaxGate
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, no_quotas
from eplb.runtime.layer.routing import route, source_counts
from eplb.runtime.verification.injected_faults import Fault, FaultyBackend, break_choice, break_tables, break_weights
from eplb.runtime.verification.observations import LayerSeen, ModeSeen, Refused
from eplb.runtime.verification.probe_experts import ProbeExperts, generator_of

_WEIGHT_STEP = 64
"""Gate weights are rounded to 1/64, so that integer rows times weights sum exactly."""


@final
@dataclass(frozen=True)
class VerifyJob:
    """The arguments of every process."""

    placement: Placement
    rule: DispatchRule
    layers: tuple[int, ...]
    tokens_of_rank: tuple[int, ...]
    expert_ids: NDArray[np.uint16] | None
    """[tokens by rank, number of `layers`, K] choices of a trace; None: a gate chooses."""
    top_k: int
    limit: GroupLimit
    exchange: str
    """Name of one backend, or "all"."""
    limits: ExchangeLimits
    hidden: int
    fault: Fault
    seed: int


def poisoned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A receive buffer filled with NaN, or with an integer that no count or id can have."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan"), dtype=dtype, device=device)
    return torch.full(tuple(shape), torch.iinfo(dtype).min // 2, dtype=dtype, device=device)


def exchange_modes(group: RankGroup, job: VerifyJob, device: torch.device) -> dict[str, Backend]:
    """The exchange modes to verify, by name; "all" has the symmetric ones where they are available on GPUs."""
    limits, exchange = job.limits, job.exchange
    modes: dict[str, Backend] = {
        "allgather": AllGather(group, limits=limits),
        "allgather, fixed order": AllGather(group, fixed_order=True, limits=limits),
        "alltoall": AllToAll(group, limits=limits),
        "alltoall, fixed order": AllToAll(group, fixed_order=True, limits=limits),
        "alltoall, no dedup": AllToAll(group, dedup=False, limits=limits),
        "alltoall, no dedup, fixed order": AllToAll(group, dedup=False, fixed_order=True, limits=limits),
    }
    on_gpus = device.type == "cuda" and limits == ExchangeLimits() and group.num_processes > 1
    if exchange == "symmetric" or (exchange == "all" and on_gpus and not symmetric_refusal(group, device)):
        if limits != ExchangeLimits():
            raise InputError("exchange symmetric: exchange limits are for allgather and alltoall")
        tokens = [
            sum(job.tokens_of_rank[group.first_rank(process) : group.first_rank(process + 1)])
            for process in range(group.num_processes)
        ]
        sizes = BufferSizes(max(1, *tokens), job.top_k, max(job.hidden, 4), element_bytes=4)
        for name, fixed_order in (("symmetric", False), ("symmetric, fixed order", True)):
            modes[name] = Symmetric.create(group, sizes, device, fixed_order=fixed_order)
    return modes if exchange == "all" else {name: mode for name, mode in modes.items() if mode.name == exchange}


@final
@dataclass(frozen=True)
class LayerRun:
    """One layer on this process."""

    job: VerifyJob
    group: RankGroup
    tables: PlacementTables
    experts: ProbeExperts
    layer: int
    fault: Fault

    def seen(self, position: int) -> LayerSeen:
        """Route, execute every mode, then migrate the experts and execute once more."""
        job, tables, layer, device = self.job, self.tables, self.layer, self.tables.device
        ranks = self.group.ranks
        source = TokenSource.consecutive(ranks.start, list(job.tokens_of_rank[ranks.start : ranks.stop]), device)
        exact_x_TH, real_x_TH = self._hidden_states(source)
        choice = self._choice(position, real_x_TH)
        self._load_experts(job.placement.physical_to_logical_map[layer].tolist())
        break_weights(self.fault, self.experts)
        break_tables(self.fault, tables, layer)
        routing = route(choice, source, tables, layer, self.group)
        slot_TK = break_choice(self.fault, routing.slot_TK, job.placement.num_slots)
        routing = RoutingPlan(slot_TK, routing.weight_TK, source, routing.epoch)
        phy2log_P, log2phy_EX, logcnt_E = (
            table[layer].cpu().clone() for table in (tables.phy2log_LP, tables.log2phy_LEX, tables.logcnt_LE)
        )
        epoch, fingerprints = int(tables.epoch_L[layer]), self.experts.fingerprints()
        modes = {
            name: self._mode(FaultyBackend(backend, self.fault, self.group), routing, exact_x_TH, real_x_TH)
            for name, backend in exchange_modes(self.group, job, device).items()
        }
        recorded_E = source_counts(choice.expert_ids_TK, source, tables).sum(dim=0).cpu()
        if self.fault is Fault.LOST_RECORD:
            recorded_E[recorded_E.argmax()] = 0
        graph_error = self._graph_error(choice, source)
        migrated_TH, migrated_epoch = self._migrated(choice, source, exact_x_TH)
        return LayerSeen(
            epoch=epoch,
            phy2log_P=phy2log_P,
            log2phy_EX=log2phy_EX,
            logcnt_E=logcnt_E,
            expert_ids_TK=choice.expert_ids_TK.cpu(),
            weight_TK=choice.weight_TK.cpu(),
            rank_T=source.rank_T.cpu(),
            index_T=source.index_T.cpu(),
            slot_TK=slot_TK.cpu(),
            exact_x_TH=exact_x_TH.cpu(),
            real_x_TH=real_x_TH.cpu(),
            fingerprints=fingerprints,
            recorded_E=recorded_E,
            modes=modes,
            migrated_TH=migrated_TH,
            migrated_epoch=migrated_epoch,
            graph_error=graph_error,
        )

    def _hidden_states(self, source: TokenSource) -> tuple[Tensor, Tensor]:
        """[T, H] integers from -3 to 3, and normal numbers; drawn per rank, independent of the number of processes."""
        exact, real = [], []
        for rank in self.group.ranks:
            generator = generator_of(self.job.seed, self.layer, rank)
            shape = (self.job.tokens_of_rank[rank], self.job.hidden)
            exact.append(torch.randint(-3, 4, shape, generator=generator).float())
            real.append(torch.randn(shape, generator=generator))
        return torch.cat(exact).to(source.rank_T.device), torch.cat(real).to(source.rank_T.device)

    def _choice(self, position: int, x_TH: Tensor) -> GateChoice:
        """The router's choice: from the trace, or from a random router under which some experts have more load."""
        job, num_experts = self.job, self.job.placement.num_experts
        generator = generator_of(job.seed, self.layer)
        router_EH = torch.randn((num_experts, job.hidden), generator=generator).to(x_TH.device) / job.hidden**0.5
        if job.expert_ids is not None:
            ranks = self.group.ranks
            first = sum(job.tokens_of_rank[: ranks.start])
            own = job.expert_ids[first : first + x_TH.shape[0], position].astype(np.int64)
            expert_ids_TK = torch.from_numpy(own).to(x_TH.device)
            weight_TK = (x_TH @ router_EH.T).sigmoid().gather(1, expert_ids_TK)
            return GateChoice(expert_ids_TK, _rounded(weight_TK / weight_TK.sum(dim=1, keepdim=True)))
        hot_E = torch.randn(num_experts, generator=generator).to(x_TH.device) / 2
        tokens = torch.arange(x_TH.shape[0], device=x_TH.device)
        if job.limit.top_k_groups < job.limit.num_groups:
            gate = SigmoidGroupGate(router_EH, hot_E / 4, job.top_k, job.limit)
            choice = gate(x_TH, tokens)
        else:
            choice = SoftmaxGate(router_EH * hot_E.exp()[:, None], job.top_k)(x_TH, tokens)
        return GateChoice(choice.expert_ids_TK, _rounded(choice.weight_TK))

    def _load_experts(self, expert_of_slot: list[int]) -> None:
        slots = self.group.slots
        self.experts.load(self.layer, expert_of_slot[slots.start : slots.stop])

    def _mode(
        self, backend: Backend, routing: RoutingPlan, exact_x_TH: Tensor, real_x_TH: Tensor
    ) -> ModeSeen | Refused:
        """One exchange mode: dispatch stamps, integers and real numbers with one handle."""
        try:
            handle = backend.plan_exchange(routing)
        except (ExchangeOverflowError, ExchangeEpochError) as error:
            return Refused(str(error))
        rows = handle.rows
        stamp_T2 = torch.stack([routing.source.rank_T, routing.source.index_T], dim=1)
        stamp_M2 = backend.dispatch(stamp_T2, handle)
        results, num_poisoned = [], 0
        for x_TH in (exact_x_TH, real_x_TH):
            x_MH = backend.dispatch(x_TH, handle)
            y_MH = self.experts.forward(self.layer, x_MH, rows.rows_per_slot_S)
            results.append(backend.combine(y_MH, handle))
            num_poisoned += int((~x_MH.isfinite()).sum() + (~results[-1].isfinite()).sum())
        wire = backend.wire_rows(handle)
        return ModeSeen(
            kept_TK=handle.routing.slot_TK.cpu(),
            dropped_P=handle.dropped_P.cpu(),
            rows_per_slot_S=rows.rows_per_slot_S.cpu(),
            stamp_M3=torch.cat([rows.slot_of_row_M[:, None], stamp_M2], dim=1).cpu(),
            num_poisoned=num_poisoned,
            exact_TH=results[0].cpu(),
            real_TH=results[1].cpu(),
            dispatch_RR=wire.dispatch_RR.cpu(),
            combine_RR=wire.combine_RR.cpu(),
        )

    def _migrated(self, choice: GateChoice, source: TokenSource, x_TH: Tensor) -> tuple[Tensor, int]:
        """The result after all experts moved to the mirrored slots, weights first, maps last; then restore the maps."""
        layer, planned = self.layer, self.job.placement.physical_to_logical_map[self.layer]
        self._load_experts((planned if self.fault is Fault.TORN_MIGRATION else planned[::-1]).tolist())
        self._publish(mirrored=True)
        epoch = int(self.tables.epoch_L[layer])
        backend = AllToAll(self.group, fixed_order=True)
        try:
            handle = backend.plan_exchange(route(choice, source, self.tables, layer, self.group))
            x_MH = backend.dispatch(x_TH, handle)
            y_TH = backend.combine(self.experts.forward(layer, x_MH, handle.rows.rows_per_slot_S), handle)
        except ExchangeEpochError:
            y_TH = torch.full_like(x_TH, float("nan"))
        self._publish(mirrored=False)
        return y_TH.cpu(), epoch

    def _publish(self, *, mirrored: bool) -> None:
        """Publish the planned maps of the layer, or their mirror image: slot 0 becomes the last slot."""
        placement, step = self.job.placement, -1 if mirrored else 1
        shares = None if placement.replica_weights is None else placement.replica_weights[self.layer][::step]
        self.tables.publish(self.layer, placement.physical_to_logical_map[self.layer][::step], shares)

    def _graph_error(self, choice: GateChoice, source: TokenSource) -> str:
        """Capture the replica choice, change choices and maps in place, replay and compare with eager; CUDA only."""
        tables, layer = self.tables, self.layer
        if tables.device.type != "cuda" or tables.rule is DispatchRule.ONLINE or not choice.expert_ids_TK.numel():
            return ""
        ids_TK, quota_REX = choice.expert_ids_TK.clone(), no_quotas(tables.device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            choose_slots(ids_TK, source, tables, layer, quota_REX)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the communicator uses other threads
            slot_TK = choose_slots(ids_TK, source, tables, layer, quota_REX)
        epoch = tables.epoch_L[layer].clone()
        self._publish(mirrored=True)
        ids_TK.copy_(choice.expert_ids_TK.roll(1, 0))
        graph.replay()
        same = torch.equal(slot_TK, choose_slots(ids_TK, source, tables, layer, quota_REX))
        self._publish(mirrored=False)
        tables.epoch_L[layer] = epoch
        return "" if same else "the replayed graph chose other slots than eager execution"


def _rounded(weight_TK: Tensor) -> Tensor:
    return (weight_TK * _WEIGHT_STEP).round() / _WEIGHT_STEP
