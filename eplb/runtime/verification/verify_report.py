"""The result of a verification: outcome of every check, bytes sent, loads predicted and measured."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import InputError, VerificationError
from eplb.runtime.exchange.backend_choice import ExchangeBytes, auto_backend, exchange_bytes
from eplb.runtime.verification.checks import CHECKS, Finding
from eplb.runtime.verification.verify_request import VerifyRequest
from eplb.runtime.verification.worker import LayerResult
from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from eplb_traces.expert_load import logical_counts

_VALUE_BYTES = 4
"""Hidden states are float32 in a verification."""


@final
@dataclass(frozen=True)
class VerifyReport:
    """What was executed, and the outcome of the checks."""

    plan: Plan
    request: VerifyRequest
    tokens_of_rank: tuple[int, ...]
    top_k: int
    layers: list[LayerResult]

    def failures(self) -> list[tuple[int, Finding]]:
        """Layer and finding of every failed check."""
        return [(one.layer, finding) for one in self.layers for finding in one.findings if finding.failure]

    def check_outcomes(self) -> dict[str, str]:
        """{check: "ok", or its first failure}."""
        outcomes = dict.fromkeys(CHECKS, "ok")
        if self.request.launch.communicator != "nccl":
            outcomes["graph"] = "not executed: requires GPUs"
        for layer, finding in reversed(self.failures()):
            outcomes[finding.check] = f"FAILED, layer {layer}: {finding.failure}"
        return outcomes

    def raise_on_failure(self) -> None:
        """Raise VerificationError for the first failure; do nothing if all checks passed."""
        for layer, finding in self.failures():
            raise VerificationError(f"{finding.check}: layer {layer}: {finding.failure}")

    def expected_bytes(self) -> ExchangeBytes:
        """Bytes that one rank receives in dispatch of one layer under uniform routing, by formula."""
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
        """The backend that `auto` chooses for this plan."""
        return auto_backend(self.plan.placement.topology.num_ranks, self.top_k)

    def traffic(self) -> dict[str, dict[str, int]]:
        """By mode: hidden-state bytes by link and of the busiest rank, dropped selections; summed over layers."""
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
        """(exchange mode, layer, expert, dropped selections) for every expert with dropped selections."""
        rows = []
        for one in self.layers:
            expert_P = self.plan.placement.physical_to_logical_map[one.layer]
            for name, wire in one.traffic.items():
                dropped_E = logical_counts(wire.dropped_P[None], expert_P[None], self.plan.placement.num_experts)[0]
                rows += [(name, one.layer, int(e), int(dropped_E[e])) for e in np.flatnonzero(dropped_E)]
        return rows

    def load_rows(self) -> list[tuple[int, int, float, int, float]]:
        """(layer, busiest rank, its predicted rows, its measured rows, mean rows over ranks)."""
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
        """What was executed, as (name, value) pairs for display."""
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
        """The whole report, as `--json` prints it."""
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
        """The executed choices as a trace with source ranks; requires that all layers of the plan were executed."""
        shape = self.plan.shape
        if [one.layer for one in self.layers] != list(range(shape.num_layers)):
            raise InputError(f"record: {len(self.layers)} layers were executed: expected all {shape.num_layers}")
        ids = np.stack([one.expert_ids_TK for one in self.layers], axis=1)
        sources = np.repeat(np.arange(len(self.tokens_of_rank), dtype=np.int32), self.tokens_of_rank)
        known = ModelShape(shape.num_layers, shape.num_experts, self.top_k, moe_layer_ids=shape.moe_layer_ids)
        steps = np.zeros(len(ids), dtype=np.int64)
        return RoutingTrace(known, [TokenBatch(known, ids, steps, sources.astype(np.int64), sources)])
