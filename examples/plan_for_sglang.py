"""Plans the sample trace for an SGLang server, writes its file, and prints the flags of the server.

Run it in a checkout: python examples/plan_for_sglang.py [OUT.json]
"""

import sys
from pathlib import Path

import eplb
from eplb.formats import find_format

SAMPLE = Path(__file__).resolve().parents[1] / "traces/eplb_traces/samples/moe-435m.parquet"


def main(out: Path) -> None:
    """Read a load, plan, compare with experts in order, write."""
    load = eplb.read_load(SAMPLE)
    topology = eplb.Topology.for_experts(load.num_experts, num_ranks=32, num_nodes=4, num_redundant=32)
    in_order = eplb.plan(load, topology, strategy="linear")
    plan = eplb.plan(load, topology)

    for name, made in (("experts in order", in_order), (plan.strategy, plan)):
        metrics = eplb.evaluate(made.placement, load).summary()
        print(f"{name:>16}: busiest / mean rank {metrics['max_over_mean_mean']:.4f}", end=", ")
        print(f"SGLang's balancedness {metrics['balancedness_sglang']:.4f}")
    print(f"at most {100 * plan.gap_worst:.2f} % above the lower bound in any layer")

    eplb.write_placement(plan, out, format="sglang")
    print(f"wrote {out}; start the server with")
    print(find_format("sglang").server_flags(out, plan))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "location.json"))
