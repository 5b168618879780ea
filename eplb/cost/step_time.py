"""Predicts the step time of Mixture-of-Experts layers from a placement and a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.cost.batch import Batch, slot_counts
from eplb.cost.calibration import Calibration
from eplb.cost.links import expected_copies
from eplb.cost.model_presets import ModelSizes
from eplb.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Where the time of each layer goes, in seconds."""

    layers: tuple[int, ...]
    """Which layers of the placement."""
    slot_tokens: Ints
    """[L', P] rows of each slot."""
    ffn_s: Floats
    """[L', R] expert FFN of each rank."""
    dispatch_s: Floats
    """[L'] tokens to experts."""
    combine_s: Floats
    """[L'] outputs back."""

    @property
    def makespan_s(self) -> Floats:
        """[L'] FFN of the slowest rank."""
        return np.asarray(self.ffn_s.max(axis=1))

    @property
    def waiting_s(self) -> Floats:
        """[L'] mean time that a rank waits for the slowest one."""
        return np.asarray(self.ffn_s.max(axis=1) - self.ffn_s.mean(axis=1))

    @property
    def step_s(self) -> Floats:
        """[L'] dispatch, FFN of the slowest rank, combine."""
        return np.asarray(self.makespan_s + self.dispatch_s + self.combine_s)


def predict(  # noqa: PLR0913  # placement, batch and model on one side, GPU and rule on the other
    placement: Placement,
    batch: Batch,
    model: ModelSizes,
    calibration: Calibration,
    *,
    dtype: str | None = None,
    rule: DispatchRule = DispatchRule.EVEN,
    layers: Sequence[int] = (),
) -> LayerTimes:
    """Predict the seconds of every rank in some layers.

    Dispatch carries one copy of a token to each rank that it chose, in the weights' type; combine carries bf16. Copies
    are estimated from the load, see `links.expected_copies`.

    Parameters
    ----------
    placement, batch
        Where experts live, and what the tokens chose.
    model
        Sizes of an expert.
    calibration
        The GPU and its links.
    dtype
        Type of the weights, one that the calibration holds; None: the model's.
    rule
        How an expert's tokens are split over its replicas.
    layers
        Layers of the placement; empty: all.

    Raises
    ------
    InputError
        If the calibration does not hold the type, batch, model or a layer do not fit the placement, or ranks differ
        in speed.
    """
    if placement.topology.rank_speed is not None:
        raise InputError("rank_speed: expected none, a calibration is of one GPU and predicts ranks of equal speed")
    if model.num_experts != placement.num_experts:
        raise InputError(f"model {model.name} has {model.num_experts} experts: expected {placement.num_experts}")
    for layer in layers:
        if not 0 <= layer < placement.num_layers:
            raise InputError(f"layer {layer}: expected 0 <= layer < {placement.num_layers}")
    chosen = tuple(layers) or tuple(range(placement.num_layers))
    kind = model.dtype if dtype is None else dtype
    ffn = calibration.ffn_of(kind).for_expert(model.hidden_size, model.intermediate_size)
    topology = placement.topology
    slots = np.stack([slot_counts(placement, layer, batch, rule) for layer in chosen])
    dispatch, combine = np.empty(len(chosen)), np.empty(len(chosen))
    rank_rows = np.add.reduceat(slots, topology.rank_first_slot[:-1], axis=1).astype(np.float64)
    for i in range(len(chosen)):
        copies = expected_copies(rank_rows[i], tokens_per_rank=batch.tokens_per_rank, top_k=model.top_k)
        dispatch[i] = calibration.links.exchange_s(copies, topology, row_bytes=model.wire_bytes(kind))
        combine[i] = calibration.links.exchange_s(copies.T, topology, row_bytes=model.wire_bytes("bf16"))
    return LayerTimes(chosen, slots, ffn.seconds(slots, topology.rank_first_slot), dispatch, combine)
