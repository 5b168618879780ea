"""Small reports: a trace with expert groups whose load changes over time, plans for it, and loads without a trace."""

from functools import cache

import numpy as np

import eplb
from eplb.core.expert_bytes import DEEPSEEK_V3_EXPERT_BYTES
from eplb.report import ReportContents, gather
from eplb_traces import ModelShape, RoutingTrace, synthesize_trace

SHAPE = ModelShape(3, 16, 4, 4, 2, moe_layer_ids=(1, 2, 5), num_hidden_layers=6)
TOPOLOGY = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)


@cache
def some_trace() -> RoutingTrace:
    """4 steps of 64 tokens."""
    return synthesize_trace("v3-switching", shape=SHAPE, num_steps=4, tokens_per_step=64)


@cache
def contents_of_trace() -> ReportContents:
    """Experts in order beside `greedy`."""
    return gather(some_trace(), topology=TOPOLOGY, title="trace.parquet", expert_bytes=DEEPSEEK_V3_EXPERT_BYTES)


def placement(strategy: str = "greedy", topology: eplb.Topology = TOPOLOGY) -> eplb.Placement:
    """A plan for the trace."""
    return eplb.plan(some_trace().load(), topology, strategy).placement


def skewed(num_layers: int = 2, num_experts: int = 8, num_windows: int = 1) -> eplb.ExpertLoad:
    """A load whose first experts have the most tokens."""
    rng = np.random.default_rng(3)
    rates = np.arange(num_experts, 0, -1.0) ** 2
    return eplb.ExpertLoad(rng.poisson(rates, (num_windows, num_layers, num_experts)) + 1)
