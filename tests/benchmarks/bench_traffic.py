"""Nodes and ranks a token on held-out requests: plans of `traffic` under load caps, against `greedy` and pinned groups.

Needs the traces beside the checkout. Every second request is fitted, the others are the test. The plan holds out every
fifth of the fitted requests itself.
"""

import platform
import sys
from pathlib import Path

import numpy as np

import eplb
from eplb.evaluation.traffic import token_spread
from eplb_traces import ModelShape, RoutingTrace, TokenBatch

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
HEADINGS = "           plan  nodes fit  held out  ranks fit  held out  load fit     worst  held out  seconds"


def halves(expert_ids: np.ndarray, request: np.ndarray, groups: int) -> tuple[RoutingTrace, RoutingTrace]:
    _, num_layers, top_k = expert_ids.shape
    shape = ModelShape(num_layers, int(expert_ids.max()) + 1, top_k, num_expert_groups=groups)
    whole = TokenBatch(shape, expert_ids.astype(np.uint16), np.zeros(len(request), np.int64), request)
    fit, test = (RoutingTrace(shape, [whole.select(request % 2 == part)]) for part in (0, 1))
    return fit, test


def table(fit: RoutingTrace, test: RoutingTrace, topology: eplb.Topology, load_caps: tuple[float, ...]) -> None:
    load, test_load = fit.load(), test.load()
    print(f"\n{topology.num_nodes} nodes, {topology.num_ranks} ranks, {topology.num_slots} slots\n{HEADINGS}")
    asked: list[tuple[str, str, dict]] = [("greedy", "greedy", {})]
    if topology.num_nodes > 1:
        asked.append(("pinned groups", "greedy", {"group_mode": "pinned"}))
    asked += [(f"traffic {cap:g}", "traffic", {"trace": fit, "load_cap": cap}) for cap in load_caps]
    for name, strategy, options in asked:
        made = eplb.plan(load, topology, strategy, **options)
        spreads = [token_spread(made.placement, trace) for trace in (fit, test)]
        balance, later = (eplb.evaluate(made.placement, of).max_over_mean_of_total for of in (load, test_load))
        nodes = [spread.nodes_per_token.mean() for spread in spreads]
        ranks = [spread.ranks_per_token.mean() for spread in spreads]
        print(
            f"  {name:>13s} {nodes[0]:10.3f} {nodes[1]:9.3f} {ranks[0]:10.3f} {ranks[1]:9.3f} {balance.mean():9.4f}"
            f" {balance.max():9.4f} {later.mean():9.4f} {made.seconds:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if not SHARED.is_dir():
        sys.exit("needs the traces beside the checkout")
    print(f"eplb {eplb.__version__}, numpy {np.__version__}, Python {platform.python_version()}, seed 0")
    recorded = np.load(SHARED / "moe-435m" / "tokens.npz")
    fit, test = halves(recorded["topk_ids"], recorded["request"].astype(np.int64), 8)
    caps = tuple(float(word) for word in sys.argv[1:]) or (1.01, 1.03, 1.1, 1.5)
    print(f"\nmoe-435m: {fit.num_tokens} tokens fitted, {test.num_tokens} held out, 8 layers of 256 experts, top-8")
    for topology in (eplb.Topology(4, 8, 9), eplb.Topology(8, 4, 9)):
        table(fit, test, topology, caps)
    recorded = np.load(SHARED / "deepseek-v2-lite" / "tokens.npz")
    ids = recorded["expert_ids"]
    request = np.searchsorted(recorded["seq_offsets"], np.arange(len(ids)), side="right") - 1
    fit, test = halves(ids, request, 1)
    print(f"\ndeepseek-v2-lite: {fit.num_tokens} tokens fitted, {test.num_tokens} held out, 26 layers of 64 experts")
    table(fit, test, eplb.Topology(1, 8, 9), tuple(float(word) for word in sys.argv[1:]) or (1.01, 1.03, 1.05, 1.1))
