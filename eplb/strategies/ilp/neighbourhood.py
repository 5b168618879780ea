"""Improves a layer that is too large for one model: a few ranks at a time, each step solved to proven optimality.

Large neighbourhood search (Shaw 1998): the busiest rank and three to five others are arranged anew by an integer model,
everything else staying as it is. A step is kept only if it lowers the busiest of these ranks.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.strategies.ilp.model import RegionModel
from eplb.strategies.ilp.region import Layout, Region, scale_of, some_ranks
from eplb.strategies.ilp.search_control import SearchControl

FEWEST_RANKS, MOST_RANKS = 4, 6
STEP_LIMIT_S = 0.25
"""Deterministic seconds of one step."""
MOST_FAILURES = 25
"""Steps in a row without gain before the search gives up."""
MIN_RELATIVE_GAIN = 1e-9
SECONDS_PER_VARIABLE = 1e-4
"""What building and presolving a model takes, which the deterministic clock does not count."""
GOOD_ENOUGH = 1e-6
"""Relative distance from the lower bound at which the search ends."""


@final
@dataclass(frozen=True)
class Polished:
    """The placement reached and what it cost."""

    layout: Layout
    spent_s: float
    """Deterministic seconds."""


def rank_times(whole: Region, layout: Layout) -> Floats:
    """[R] tokens over speed on each rank when every replica gets the same share."""
    count = np.bincount([expert for held in layout for expert in held], minlength=whole.load.size)
    unit = whole.load / np.maximum(count, 1)
    return np.array([unit[held].sum() / speed for held, speed in zip(layout, whole.speed, strict=True)])


def polish(  # noqa: PLR0913  # a layer, where it stands, and the limits
    whole: Region, layout: Layout, lower: float, *, limit_s: float, seed: int, control: SearchControl
) -> Polished:
    """Lower the busiest rank of a layer by arranging a few ranks at a time; never worse than the start.

    Parameters
    ----------
    whole
        The layer, with the counts it may choose from.
    layout
        Where to start; meets the constraints.
    lower
        A bound, in tokens over speed.
    limit_s
        Deterministic seconds for all steps.
    seed
        Picks the ranks beside the busiest one.
    control
        Wall time left: no step is begun that could not be built in it.
    """
    layout = [list(held) for held in layout]
    scale = scale_of(whole.load, len(whole.slots), 0, exact=False)
    generator = np.random.default_rng(seed)
    spent, failures, turn = 0.0, 0, 0
    while spent < limit_s and failures < MOST_FAILURES:
        times = rank_times(whole, layout)
        if times.max() <= lower * (1 + GOOD_ENOUGH):
            break
        ranks = _choose_ranks(whole, times, generator, FEWEST_RANKS + turn % (MOST_RANKS - FEWEST_RANKS + 1))
        turn += 1
        count = np.bincount([expert for held in layout for expert in held], minlength=whole.load.size)
        region = some_ranks(whole, layout, ranks, count, free_counts=turn % 2 == 0)
        if control.left_s <= SECONDS_PER_VARIABLE * region.num_variables:
            break
        model = RegionModel(region, scale, weighted=False)
        model.order_ranks()
        goal = lower if turn % 2 == 0 else max(lower, _mean_time(whole, times, ranks))
        model.minimise_busiest(goal * (1 + GOOD_ENOUGH), float(times[list(ranks)].max()))
        model.hint([layout[rank] for rank in ranks])
        answer, found = model.run(limit_s=min(STEP_LIMIT_S, limit_s - spent), seed=seed, control=control)
        spent += answer.spent_s + SECONDS_PER_VARIABLE * region.num_variables
        failures += 1
        if found is None:
            continue
        trial = list(layout)
        for rank, held in zip(ranks, found, strict=True):
            trial[rank] = held
        before, after = times[list(ranks)].max(), rank_times(whole, trial)[list(ranks)].max()
        if after < before * (1 - MIN_RELATIVE_GAIN):
            layout, failures = trial, 0
    return Polished(layout, spent)


def _mean_time(whole: Region, times: Floats, ranks: tuple[int, ...]) -> float:
    """Tokens on the ranks over their speed: what they cannot go below while the counts stay."""
    speed = np.array([whole.speed[rank] for rank in ranks])
    return float(times[list(ranks)] @ speed / speed.sum())


def _choose_ranks(whole: Region, times: Floats, generator: np.random.Generator, size: int) -> tuple[int, ...]:
    """The busiest rank, the idlest one and random others; all of one node where groups are pinned."""
    busiest = int(times.argmax())
    pool = np.arange(times.size)
    if whole.node_of_rank is not None:
        pool = pool[np.asarray(whole.node_of_rank) == whole.node_of_rank[busiest]]
    others = pool[pool != busiest]
    if others.size == 0:
        return (busiest,)
    idlest = int(others[times[others].argmin()])
    rest = generator.permutation(others[others != idlest])[: size - 2]
    return tuple(sorted({busiest, idlest, *rest.tolist()}))
