"""Expert groups at a price: balance against copies away from their group's home node, between pinned and free.

Needs the traces beside the checkout: DeepSeek-V3, 8 expert groups, 256 experts, 32 ranks x 9 slots on 4 nodes.
"""

import platform
import sys
from pathlib import Path

import numpy as np

import eplb
from eplb.evaluation.metrics import off_node_replicas

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
MACHINE, GROUPS = eplb.Topology(4, 8, 9), 8
PRICES = (0.03, 0.01, 0.003, 0.001)


def table(load: eplb.ExpertLoad) -> None:
    asked = {"pinned": {"groups": GROUPS, "group_mode": "pinned"}}
    asked |= {str(price): {"groups": GROUPS, "group_mode": "priced", "group_price": price} for price in PRICES}
    asked |= {"free": {}}
    for name, words in asked.items():
        made = eplb.plan(load, MACHINE, "greedy", **words)
        balance = eplb.evaluate(made.placement, load).max_over_mean_of_total
        away = off_node_replicas(made.placement, GROUPS)
        print(
            f"  {name:>6s} {balance.mean():10.4f} {balance.max():12.4f} {away.mean():12.1f} {away.max():11d}"
            f" {made.seconds:8.2f}"
        )


if __name__ == "__main__":
    if not SHARED.is_dir():
        sys.exit("needs the traces beside the checkout")
    print(f"eplb {eplb.__version__}, numpy {np.__version__}, Python {platform.python_version()}, seed 0")
    for file in sorted((SHARED / "deepseek-v3").glob("*.json")):
        print(f"\n{file.stem}, {MACHINE.num_slots} copies a layer")
        print("   price   max/mean  worst layer  copies away  most in one  seconds")
        table(eplb.read_load(file))
