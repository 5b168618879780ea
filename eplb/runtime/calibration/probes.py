"""Chooses what to measure: rows of the slots of a rank, equal, partly empty and uneven."""

from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class ProbeGrid:
    """Which rows are tried.

    Parameters
    ----------
    slots
        Numbers of slots of a rank.
    rows
        Mean rows of a slot.
    most_rows
        Rows of a rank at most: memory, and time.
    """

    slots: tuple[int, ...]
    rows: tuple[int, ...]
    most_rows: int


GPU_GRID = ProbeGrid(
    (1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 18, 32, 48),
    (1, 8, 32, 64, 96, 128, 160, 256, 384, 512, 768, 1024, 2048, 4096),
    66_000,
)
SMALL_GRID = ProbeGrid((1, 2, 4), (1, 8, 24), 128)
"""For the CPU: it shows that the code runs."""

_SPREADS = (0.3, 0.8, 1.4)
_SEED = 0


def probes(grid: ProbeGrid) -> dict[int, list[tuple[int, ...]]]:
    """{slots: rows of each slot, many of them}, ascending in rows: neighbours draw about the same power."""
    rng = np.random.default_rng(_SEED)
    found: dict[int, list[tuple[int, ...]]] = {}
    for num_slots in grid.slots:
        rows = [mean for mean in grid.rows if mean * num_slots <= grid.most_rows]
        lists = [(mean,) * num_slots for mean in rows]
        for mean in rows[::2]:
            lists += [_uneven(rng, num_slots, mean, spread) for spread in _SPREADS if num_slots > 1]
            used = int(rng.integers(1, num_slots + 1))
            lists.append((mean,) * used + (0,) * (num_slots - used))
        found[num_slots] = sorted(lists, key=sum)
    return found


def _uneven(rng: np.random.Generator, num_slots: int, mean: int, spread: float) -> tuple[int, ...]:
    share = rng.lognormal(0, spread, num_slots)
    return tuple(rng.multinomial(num_slots * mean, share / share.sum()).tolist())
