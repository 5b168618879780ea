"""Holds which placement serves each step of a history, and the seconds that its migrations take."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.counts import check_count
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class PlacementSchedule:
    """The placements of consecutive steps.

    Parameters
    ----------
    name
        For display.
    first_step
        The first step that is served.
    placements
        The placement of each step from `first_step` on.
    migration_s
        [steps] seconds that weights travel in each step.
    moved_copies
        Replicas that ranks fetched from other ranks, over all steps.

    Raises
    ------
    InputError
        If the seconds are not one finite number >= 0 a step, or there is no step.
    """

    name: str
    first_step: int
    placements: tuple[Placement, ...]
    migration_s: Floats
    moved_copies: int

    def __post_init__(self) -> None:
        if not self.placements or self.migration_s.shape != (len(self.placements),):
            raise InputError(
                f"migration_s has shape {self.migration_s.shape}: expected one number for each of "
                f"{len(self.placements)} steps, at least one"
            )
        if not ((self.migration_s >= 0) & np.isfinite(self.migration_s)).all():
            raise InputError(f"migration_s = {self.migration_s}: expected finite numbers >= 0")


class RolloutStep(NamedTuple):
    """What a migration does in one step."""

    placement: Placement
    """Serves this step."""
    seconds: float
    """That weights travel."""
    moved_copies: int


def rollout(migration: Migration, layers_per_step: int) -> Iterator[RolloutStep]:
    """The steps in which a migration is executed, layer by layer.

    Parameters
    ----------
    migration
        The replicas to move; no step for one that changes nothing.
    layers_per_step
        Layers that change in one step; the other changed layers follow in the next steps, ascending.

    Raises
    ------
    InputError
        If `layers_per_step` is below one, or the new placement carries replica weights.
    """
    check_count("layers_per_step", layers_per_step)
    if migration.after.replica_weights is not None:
        raise InputError("replica_weights: expected none, a migration carries no shares")
    before, after = migration.before, migration.after
    changed = np.flatnonzero((before.physical_to_logical_map != after.physical_to_logical_map).any(axis=1))
    mixed = before.physical_to_logical_map.copy()
    for first in range(0, len(changed), layers_per_step):
        layers = changed[first : first + layers_per_step]
        mixed[layers] = after.physical_to_logical_map[layers]
        placement = Placement(mixed.copy(), before.num_experts, before.topology)
        seconds = float(migration.transfer_s_by_layer[layers].sum())
        yield RolloutStep(placement, seconds, int(migration.moved_copies_by_layer[layers].sum()))
