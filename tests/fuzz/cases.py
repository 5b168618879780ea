"""Random planning cases by number: equal numbers give equal cases. Shapes, loads, speeds, rules, options, live maps."""

from dataclasses import dataclass
from typing import final

import numpy as np

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import EMPTY_SLOT
from eplb.strategies import STRATEGIES
from eplb_traces import ExpertLoad
from eplb_traces.routing_trace import TokenBatch

REBALANCE = "rebalance"
KINDS_OF_LOAD = ("ties", "counts", "skewed", "hot", "one", "equal", "wide", "tiny", "huge", "mixed", "idle")
SPEEDS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.25, 2.0, 4.0)
ILP_SHARE = 0.02
"""Of the cases: ilp takes ten times as long as the others."""


@final
@dataclass(frozen=True, eq=False)
class Case:
    """What is asked of the planner."""

    number: int
    strategy: str
    load: ExpertLoad
    topology: eplb.Topology
    options: dict
    """Keywords of `plan`, or of `rebalance` for its name."""
    previous: eplb.Placement | None = None
    trace: eplb.RoutingTrace | None = None

    @property
    def rule(self):
        return DispatchRule.named(self.options.get("dispatch", "even"))

    def plan(self):
        if self.previous is not None:
            return eplb.rebalance(self.previous, self.load, **self.options)
        options = self.options if self.trace is None else {**self.options, "trace": self.trace}
        return eplb.plan(self.load, self.topology, self.strategy, **options)


def case(number):
    """The case of a number."""
    rng = np.random.default_rng([number, 0xE91B])
    num_nodes = int(rng.integers(1, 4))
    ranks_per_node = int(rng.integers(1, 5))
    num_ranks = num_nodes * ranks_per_node
    num_groups = num_nodes * int(rng.integers(1, 4)) if rng.random() < 0.5 else 1
    num_experts = num_groups * int(rng.integers(1, 1 + max(1, 24 // num_groups)))
    topology = _topology(rng, num_nodes, ranks_per_node, num_experts)
    windows = int(rng.choice([1, 1, 1, 2, 3, 9]))
    load = _load(rng, windows, int(rng.integers(1, 4)), num_experts)
    names = [*(name for name in STRATEGIES if name != "ilp"), "auto", REBALANCE, REBALANCE]
    strategy = "ilp" if rng.random() < ILP_SHARE else str(rng.choice(names))
    options = {"seed": int(rng.integers(0, 1 << 40)) if rng.random() < 0.3 else 0}
    if rng.random() < 0.6:
        options["dispatch"] = str(rng.choice([str(rule) for rule in DispatchRule]))
    if rng.random() < 0.3:
        options["sources"] = tuple(_sources(rng, num_ranks))
    if strategy == REBALANCE:
        options["target"] = float(rng.choice([1.0, 1.05, 1.5]))
        options["max_moves"] = None if rng.random() < 0.5 else int(rng.integers(0, 6))
        previous = _placement(rng, load.num_layers, num_experts, topology)
        return Case(number, strategy, load, topology, options, previous)
    options["groups"] = num_groups
    mode = str(rng.choice(["free", "free", "free", "pinned", "priced"]))
    options["group_mode"] = mode
    if mode == "priced":
        options["group_price"] = float(rng.choice([1e-4, 0.01, 1.0]))
    if rng.random() < 0.15:
        options["survive"] = str(rng.choice(["rank", "node"]))
    if strategy == "ilp":
        options["time_limit_s"] = 0.3 if number % 4 == 0 else 0.03
    trace = _trace(rng, load) if strategy == "traffic" else None
    return Case(number, strategy, load, topology, options, None, trace)


def _topology(rng, num_nodes, ranks_per_node, num_experts):
    num_ranks, least = num_nodes * ranks_per_node, -(-num_experts // (num_nodes * ranks_per_node))
    slots = int(min(num_experts, least + rng.integers(0, 4)))
    if rng.random() < 0.25:
        slots = np.minimum(num_experts, least + rng.integers(0, 4, num_ranks)).tolist()
    sizes = ranks_per_node
    if num_nodes > 1 and num_ranks > num_nodes and rng.random() < 0.15:
        cuts = np.sort(rng.choice(np.arange(1, num_ranks), num_nodes - 1, replace=False))
        sizes = np.diff([0, *cuts, num_ranks]).tolist()
    speeds = rng.choice(SPEEDS, num_ranks).tolist() if rng.random() < 0.35 else None
    return eplb.Topology(num_nodes, sizes, slots, speeds)


def _layer(rng, kind, size):
    tokens = np.exp(rng.normal(0.0, 1.0, size))
    if kind == "ties":
        return rng.integers(0, 4, size).astype(np.float64)
    if kind == "counts":
        return rng.integers(0, 10 ** int(rng.integers(1, 10)), size).astype(np.float64)
    if kind == "equal":
        return np.full(size, 7.0)
    if kind == "idle":
        return np.zeros(size)
    if kind == "one":
        return tokens * (np.arange(size) == rng.integers(size))
    if kind == "hot":
        tokens[rng.integers(size)] *= 1e6
    if kind == "wide":
        return 10.0 ** rng.uniform(-30, 30, size)
    if kind == "mixed":
        return 10.0 ** rng.uniform(-300, 298, size) * (rng.random(size) < 0.9)
    return tokens * {"tiny": 1e-299, "huge": 1e297}.get(kind, 1.0)


def _load(rng, windows, layers, size):
    kinds = rng.choice(KINDS_OF_LOAD, (windows, layers))
    tokens = np.array([[_layer(rng, kind, size) for kind in row] for row in kinds])
    tokens[0, 0, 0] += tokens.max() == 0
    weights = rng.choice([0.5, 1.0, 3.0], windows) if rng.random() < 0.3 else None
    return ExpertLoad(tokens, weights)


def _sources(rng, num_ranks):
    shares = rng.integers(0, 4, num_ranks) + (np.arange(num_ranks) == 0)
    return (shares / shares.sum()).tolist()


def _placement(rng, num_layers, num_experts, topology):
    """A live map with duplicates on ranks and empty slots."""
    extra = topology.num_slots - num_experts
    rows = []
    for _ in range(num_layers):
        row = rng.permutation(np.concatenate([np.arange(num_experts), rng.integers(0, num_experts, extra)]))
        for slot in rng.permutation(row.size)[: rng.integers(0, row.size + 1)] if rng.random() < 0.5 else ():
            if (row == row[slot]).sum() > 1:
                row[slot] = EMPTY_SLOT
        rows.append(row)
    return eplb.Placement(rows, num_experts, topology)


def _trace(rng, load):
    """Choices of 40 tokens of five requests."""
    num_experts, top_k = load.num_experts, int(rng.integers(1, min(4, load.num_experts) + 1))
    ids = rng.random((40, load.num_layers, num_experts)).argsort(axis=2)[:, :, :top_k].astype(np.uint16)
    shape = eplb.ModelShape(load.num_layers, num_experts, top_k)
    batch = TokenBatch(shape, ids, np.zeros(40, np.int64), np.repeat(np.arange(5), 8))
    return eplb.RoutingTrace(shape, [batch])
