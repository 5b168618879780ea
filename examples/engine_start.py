"""Shows what a serving engine does with a plan when it starts: each rank takes its part and loads its experts.

Run it in a checkout: python examples/engine_start.py [PLAN.json]
"""

import sys
from pathlib import Path

import numpy as np

import eplb

SAMPLE = Path(__file__).resolve().parents[1] / "traces/eplb_traces/samples/moe-435m.parquet"
NUM_RANKS = 8


def start_rank(path: Path, rank: int, checkpoint: np.ndarray) -> tuple[np.ndarray, str]:
    """Fill the slots of a rank from a checkpoint [layers, experts]; returns them and the digest of the plan."""
    layout = eplb.for_engine(path, ep_size=NUM_RANKS, ep_rank=rank)
    slots = np.full(layout.local_experts.shape, np.nan)
    for read in layout.loading_order:  # each expert is read once, for all of its slots on this rank
        row = layout.layer_index(read.layer_id)
        slots[row, list(read.slots)] = checkpoint[row, read.expert]
    if np.isnan(slots).any():
        raise SystemExit(f"rank {rank}: a slot was not filled")
    return slots, layout.digest


def main(path: Path) -> None:
    """Make a plan, start all ranks with it, and check that they have read the same one."""
    load = eplb.read_load(SAMPLE)
    topology = eplb.Topology.for_experts(load.num_experts, num_ranks=NUM_RANKS, num_nodes=1, num_redundant=16)
    eplb.write_placement(eplb.plan(load, topology), path)

    checkpoint = np.random.default_rng(0).random((load.num_layers, load.num_experts))  # stands for the weights
    digests = set()
    for rank in range(NUM_RANKS):
        slots, digest = start_rank(path, rank, checkpoint)
        digests.add(digest)
        print(f"rank {rank}: {slots.shape[1]} slots in each of {slots.shape[0]} layers filled")
    if len(digests) > 1:
        raise SystemExit(f"the ranks have read {len(digests)} different plans")
    print(f"all ranks have read the plan {digests.pop()[:19]}...")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "plan.json"))
