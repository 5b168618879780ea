"""Generated calls of engines, and properties that every result must have."""

import numpy as np

from tests.engines.test_deepseek import rank_loads


def random_call(rng, *, spare=3):
    """weight, num_replicas, num_groups, num_nodes, num_ranks: a rank has at most as many slots as there are experts."""
    num_nodes, ranks_per_node = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    num_groups = num_nodes * int(rng.integers(1, 4)) if rng.random() < 0.6 else int(rng.integers(1, 6))
    num_experts = num_groups * int(rng.integers(2, 9))
    num_experts *= num_nodes if num_experts % num_nodes else 1
    num_ranks = num_nodes * ranks_per_node
    slots = min(-(-num_experts // num_ranks) + int(rng.integers(0, spare)), num_experts)
    weight = rng.lognormal(0, rng.choice([0.1, 1.0, 2.0]), (3, num_experts)) * 1000
    weight[int(rng.integers(0, 3))] *= rng.random() > 0.2  # sometimes a layer is idle
    return np.floor(weight) + (weight > 0), num_ranks * slots, num_groups, num_nodes, num_ranks


def doubles(phy2log, num_ranks):
    """Number of slots whose expert has an earlier slot on the same rank, counted with sets."""
    ranks = np.asarray(phy2log).reshape(len(phy2log), num_ranks, -1)
    return sum(len(row) - len(set(row.tolist())) for layer in ranks for row in layer)


def busiest(weight, phy2log, num_ranks):
    """[L] tokens on the busiest rank."""
    count = np.stack([np.bincount(row, minlength=weight.shape[1]) for row in phy2log])
    return rank_loads(weight, np.asarray(phy2log), count, num_ranks).max(axis=1)


def assert_whole(phy2log, num_experts):
    """Every layer holds every expert and nothing else."""
    for row in np.asarray(phy2log):
        assert set(row.tolist()) == set(range(num_experts))


def assert_stay_in_slots(old, new, num_ranks):
    """Experts that stay on a rank keep their slots."""
    shape = (len(old), num_ranks, -1)
    for before, after in zip(np.reshape(old, shape), np.reshape(new, shape), strict=True):
        for was, now in zip(before.tolist(), after.tolist(), strict=True):
            for slot, expert in enumerate(was):
                if expert in now:
                    assert now[was.index(expert)] == expert, (was, now, slot)
