"""Knows how a placement is proven on real processes, from request to report; knows no communicator, prints nothing."""

from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import Plan
from eplb.errors import InputError, UnknownNameError, VerificationError
from eplb.runtime.exchange.backend_choice import BACKENDS, ExchangeBytes, auto_backend, exchange_bytes
from eplb.runtime.exchange.protocol import ExchangeLimits
from eplb.runtime.layer.gate import GroupLimit
from eplb.runtime.verification.checks import CHECKS, Finding
from eplb.runtime.verification.injected_faults import Fault
from eplb.runtime.verification.launch import Launch, run_processes
from eplb.runtime.verification.worker import LayerVerdict, VerifyJob, verify_member
from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from eplb_traces.expert_load import logical_counts

_MOST_LAYERS = 4
"""Layers that are verified when none are named: the first, the last and some between."""
_VALUE_BYTES = 4
"""Hidden states travel as float32 here."""


@final
@dataclass(frozen=True)
class VerifyRequest:
    """What is verified, and how.

    Parameters
    ----------
    launch
        Processes and communicator.
    tokens_per_rank
        Tokens of each rank of the plan.
    layers
        Layers to execute; empty: a few, evenly spread.
    rule
        How replicas are chosen.
    exchange
        "all" backends in all modes, "auto", or the name of one backend.
    limits
        Sizes of the exchange buffers.
    hidden
        H of the probe experts, which stand in for the model's.
    top_k
        K of the random router; 0: the plan's model says it, else 8 or what the experts allow.
    fault
        What to break.
    seed
        Seed of hidden states and router.
    """

    launch: Launch = field(default_factory=lambda: Launch(2))
    tokens_per_rank: int = 64
    layers: tuple[int, ...] = ()
    rule: DispatchRule = DispatchRule.EVEN
    exchange: str = "all"
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    hidden: int = 32
    top_k: int = 0
    fault: Fault = Fault.NONE
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens_per_rank", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: expected >= 1")
        if self.exchange not in ("all", "auto", *BACKENDS):
            raise UnknownNameError("exchange", self.exchange, ("all", "auto", *BACKENDS))


@final
@dataclass(frozen=True)
class VerifyReport:
    """What was executed and what the checks found."""

    plan: Plan
    request: VerifyRequest
    tokens_of_rank: tuple[int, ...]
    top_k: int
    layers: list[LayerVerdict]

    def failures(self) -> list[tuple[int, Finding]]:
        """Layer and finding of every failed check."""
        return [(one.layer, finding) for one in self.layers for finding in one.findings if finding.failure]

    def check_outcomes(self) -> dict[str, str]:
        """Check -> "ok" in every layer, or its first failure."""
        outcomes = dict.fromkeys(CHECKS, "ok")
        if self.request.launch.communicator != "nccl":
            outcomes["graph"] = "not made: needs GPUs"
        for layer, finding in reversed(self.failures()):
            outcomes[finding.check] = f"FAILED, layer {layer}: {finding.failure}"
        return outcomes

    def raise_on_failure(self) -> None:
        """Raise VerificationError with the first failure; nothing if all checks passed."""
        for layer, finding in self.failures():
            raise VerificationError(f"{finding.check}: layer {layer}: {finding.failure}")

    def expected_bytes(self) -> ExchangeBytes:
        """Bytes one rank receives in dispatch of one layer by arithmetic, under uniform routing."""
        placement = self.plan.placement
        return exchange_bytes(
            placement.topology.num_ranks,
            num_tokens=max(self.tokens_of_rank),
            top_k=self.top_k,
            num_experts=placement.num_experts,
            token_bytes=self.request.hidden * _VALUE_BYTES,
        )

    @property
    def auto_backend(self) -> str:
        """What `auto` picks here."""
        return auto_backend(self.plan.placement.topology.num_ranks, self.top_k)

    def traffic(self) -> dict[str, dict[str, int]]:
        """By exchange mode: hidden-state bytes of all layers by link, the busiest rank's, and dropped selections."""
        topology = self.plan.placement.topology
        same_rank = np.eye(topology.num_ranks, dtype=np.bool_)
        same_node = topology.node_of_rank[:, None] == topology.node_of_rank
        summed: dict[str, dict[str, int]] = {}
        for one in self.layers:
            for name, wire in one.traffic.items():
                both = (wire.dispatch_RR + wire.combine_RR) * self.request.hidden * _VALUE_BYTES
                moved: NDArray[np.int64] = np.where(same_rank, 0, both)
                busiest = max(moved.sum(axis=0).max(), moved.sum(axis=1).max())
                numbers = {
                    "copies": wire.dispatch_RR.sum(),
                    "intra_node_bytes": moved[same_node].sum(),
                    "inter_node_bytes": moved[~same_node].sum(),
                    "busiest_rank_bytes": busiest,
                    "dropped": wire.dropped_P.sum(),
                }
                row = summed.setdefault(name, dict.fromkeys(numbers, 0))
                for key, value in numbers.items():
                    row[key] += int(value)
        return summed

    def dropped_rows(self) -> list[tuple[str, int, int, int]]:
        """Exchange mode, layer, expert and selections dropped, where there are any."""
        rows = []
        for one in self.layers:
            expert_P = self.plan.placement.physical_to_logical_map[one.layer]
            for name, wire in one.traffic.items():
                dropped_E = logical_counts(wire.dropped_P[None], expert_P[None], self.plan.placement.num_experts)[0]
                rows += [(name, one.layer, int(e), int(dropped_E[e])) for e in np.flatnonzero(dropped_E)]
        return rows

    def load_rows(self) -> list[tuple[int, int, float, int, float]]:
        """Layer, its busiest rank, that rank's predicted and measured rows, and the mean over ranks."""
        return [
            (
                one.layer,
                busiest,
                float(one.predicted_R[busiest]),
                int(one.measured_R[busiest]),
                float(one.measured_R.mean()),
            )
            for one in self.layers
            for busiest in (int(one.measured_R.argmax()),)
        ]

    def facts(self) -> list[tuple[str, str | int | float]]:
        """What was executed, as name and value pairs for people."""
        request, placement = self.request, self.plan.placement
        by_rule = self.expected_bytes()
        layers = ", ".join(str(one.layer) for one in self.layers)
        return [
            ("processes", request.launch.num_processes),
            ("ranks of the plan", placement.topology.num_ranks),
            ("communicator", request.launch.communicator),
            ("layers", f"{layers} of {placement.num_layers}"),
            ("tokens, all ranks", sum(self.tokens_of_rank)),
            ("top-k", self.top_k),
            ("dispatch rule", request.rule.value),
            ("largest error", f"{max(one.max_error for one in self.layers):.1e}"),
            ("auto picks", self.auto_backend),
            ("  bytes a rank, allgather", f"{by_rule.allgather:.0f}"),
            ("  bytes a rank, alltoall", f"{by_rule.alltoall:.0f}"),
            ("  the same without dedup", f"{by_rule.alltoall_no_dedup:.0f}"),
        ]

    def summary(self) -> dict[str, object]:
        """Everything, as `--json` prints it."""
        request, by_rule = self.request, self.expected_bytes()
        return {
            "passed": not self.failures(),
            "checks": self.check_outcomes(),
            "num_processes": request.launch.num_processes,
            "num_ranks": self.plan.placement.topology.num_ranks,
            "communicator": request.launch.communicator,
            "dispatch_rule": request.rule.value,
            "fault": request.fault.value,
            "layers": [one.layer for one in self.layers],
            "num_tokens": sum(self.tokens_of_rank),
            "top_k": self.top_k,
            "max_error": max(one.max_error for one in self.layers),
            "predicted_rank_load": [one.predicted_R.tolist() for one in self.layers],
            "measured_rank_load": [one.measured_R.tolist() for one in self.layers],
            "auto_exchange": self.auto_backend,
            "expected_bytes_per_rank": {
                "allgather": by_rule.allgather,
                "alltoall": by_rule.alltoall,
                "alltoall_no_dedup": by_rule.alltoall_no_dedup,
            },
            "traffic": self.traffic(),
            "dropped": [
                dict(zip(("exchange", "layer", "expert", "dropped"), row, strict=True)) for row in self.dropped_rows()
            ],
        }

    def recorded(self) -> RoutingTrace:
        """The choices that were executed, as a trace with source ranks; needs all layers of the plan."""
        shape = self.plan.shape
        if [one.layer for one in self.layers] != list(range(shape.num_layers)):
            raise InputError(f"record: {len(self.layers)} layers were executed, expected all {shape.num_layers}")
        ids = np.stack([one.expert_ids_TK for one in self.layers], axis=1)
        sources = np.repeat(np.arange(len(self.tokens_of_rank), dtype=np.int32), self.tokens_of_rank)
        known = ModelShape(shape.num_layers, shape.num_experts, self.top_k, moe_layer_ids=shape.moe_layer_ids)
        steps = np.zeros(len(ids), dtype=np.int64)
        return RoutingTrace(known, [TokenBatch(known, ids, steps, sources.astype(np.int64), sources)])


def verify(plan: Plan, request: VerifyRequest, trace: RoutingTrace | None = None) -> VerifyReport:
    """Execute a plan on processes of this machine and check what they did.

    A plan of more ranks than processes is folded: each process executes the shares of several ranks, with buffers,
    copies and sums rank by rank.

    Parameters
    ----------
    plan
        The plan.
    request
        How to execute it.
    trace
        Real choices; None: a random router decides.

    Returns
    -------
    VerifyReport
        `raise_on_failure` turns a failed check into an error.

    Raises
    ------
    InputError
        For a trace of another model or without tokens, layers that do not exist, or more processes than ranks.
    """
    placement = plan.placement
    num_ranks = placement.topology.num_ranks
    if request.launch.num_processes > num_ranks:
        raise InputError(f"processes = {request.launch.num_processes}: the plan has only {num_ranks} ranks")
    layers = _layers(placement.num_layers, request.layers)
    if trace is None:
        tokens_of_rank, expert_ids = (request.tokens_per_rank,) * num_ranks, None
        top_k = request.top_k or plan.shape.top_k or min(8, placement.num_experts)
    else:
        tokens_of_rank, expert_ids = _trace_tokens(trace, plan, request.tokens_per_rank, layers)
        top_k = expert_ids.shape[2]
    if not 1 <= top_k <= placement.num_experts:
        raise InputError(f"top_k = {top_k}: expected 1 to {placement.num_experts} experts")
    groups = plan.shape.num_expert_groups
    job = VerifyJob(
        placement=placement,
        rule=request.rule,
        layers=layers,
        tokens_of_rank=tokens_of_rank,
        expert_ids=expert_ids,
        top_k=top_k,
        limit=GroupLimit(groups, plan.shape.top_k_groups or groups),
        exchange=auto_backend(num_ranks, top_k) if request.exchange == "auto" else request.exchange,
        limits=request.limits,
        hidden=request.hidden,
        fault=request.fault,
        seed=request.seed,
    )
    verdicts = run_processes(request.launch, verify_member, job)[0]
    return VerifyReport(plan, request, tokens_of_rank, top_k, verdicts)


def read_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that "0,5" or "all" names; none for an empty text.

    Raises
    ------
    InputError
        For anything else.
    """
    if text == "all":
        return tuple(range(num_layers))
    try:
        return tuple(int(word) for word in text.split(",") if word)
    except ValueError:
        raise InputError(f"layers {text!r}: expected numbers like 0,5 or all") from None


def _layers(num_layers: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
    for layer in wanted:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer}: expected 0 <= layer < {num_layers}")
    if wanted:
        return tuple(sorted(set(wanted)))
    spread = np.linspace(0, num_layers - 1, min(num_layers, _MOST_LAYERS))
    return tuple(int(layer) for layer in spread.round())


def _trace_tokens(
    trace: RoutingTrace, plan: Plan, tokens_per_rank: int, layers: tuple[int, ...]
) -> tuple[tuple[int, ...], NDArray[np.uint16]]:
    """The first tokens of a trace, dealt to ranks: by their own source ranks if those fit, else in equal runs."""
    plan.placement.check_model(trace.shape, "trace")
    num_ranks = plan.placement.topology.num_ranks
    room = tokens_per_rank * num_ranks
    chosen: list[NDArray[np.uint16]] = []
    sources: list[NDArray[np.int32]] = []
    for batch in trace.batches():
        chosen.append(batch.expert_ids[:room, list(layers)])
        if batch.source_rank is not None:
            sources.append(batch.source_rank[:room])
        room -= min(room, batch.num_tokens)
        if not room:
            break
    ids = np.concatenate(chosen) if chosen else np.empty((0, 0, 0), dtype=np.uint16)
    if not len(ids):
        raise InputError("the trace has no tokens")
    source = np.concatenate(sources) if sources else np.empty(0, dtype=np.int32)
    if len(source) != len(ids) or source.max() >= num_ranks:
        source = np.arange(len(ids), dtype=np.int32) * num_ranks // len(ids)
    order = np.argsort(source, kind="stable")
    return tuple(int(n) for n in np.bincount(source, minlength=num_ranks)), ids[order]
