"""Executes the ranks of a plan on one device and compares their seconds with the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.cost.batch import Batch
from eplb.cost.calibration import Calibration
from eplb.cost.model_presets import ModelSizes
from eplb.cost.step_time import LayerTimes, predict
from eplb.errors import VerificationError
from eplb.runtime.virtual.virtual_ranks import ExpertShape, VirtualRanks


@final
@dataclass(frozen=True, kw_only=True)
class VirtualRequest:
    """What to execute.

    Parameters
    ----------
    model
        Sizes of an expert.
    calibration
        For the prediction.
    dtype
        Type of the weights.
    device
        "cuda" or "cpu".
    rule
        How an expert's tokens are split over its replicas.
    layers
        Layers of the plan; empty: all.
    repeats
        Timed calls of each rank.
    """

    model: ModelSizes
    calibration: Calibration
    dtype: str = "bf16"
    device: str = "cuda"
    rule: DispatchRule = DispatchRule.EVEN
    layers: tuple[int, ...] = ()
    repeats: int = 5


@final
@dataclass(frozen=True, eq=False)
class VirtualReport:
    """Seconds of every rank, measured and predicted."""

    predicted: LayerTimes
    measured_s: Floats
    """[L', R] median seconds of each rank."""

    @property
    def makespan_s(self) -> Floats:
        """[L'] the slowest rank of each layer."""
        return np.asarray(self.measured_s.max(axis=1))

    @property
    def errors(self) -> Floats:
        """[L'] predicted over measured makespan, minus 1."""
        return np.asarray(self.predicted.makespan_s / self.makespan_s - 1)

    def rows(self) -> list[tuple[int, int, float, float, float, float]]:
        """Layer, slowest rank, its milliseconds, the mean rank's, the predicted makespan's, the error in percent."""
        return [
            (
                layer,
                int(measured.argmax()),
                1e3 * float(measured.max()),
                1e3 * float(measured.mean()),
                1e3 * float(predicted.max()),
                100 * float(error),
            )
            for layer, measured, predicted, error in zip(
                self.predicted.layers, self.measured_s, self.predicted.ffn_s, self.errors, strict=True
            )
        ]

    def summary(self) -> dict[str, object]:
        """The figures by name, as `--json` prints them."""
        return {
            "layers": list(self.predicted.layers),
            "makespan_s": self.makespan_s.tolist(),
            "mean_s": self.measured_s.mean(axis=1).tolist(),
            "straggler_rank": self.measured_s.argmax(axis=1).tolist(),
            "predicted_makespan_s": self.predicted.makespan_s.tolist(),
            "median_error": float(np.median(np.abs(self.errors))),
            "rank_s": self.measured_s.tolist(),
        }


def verify_virtual(placement: Placement, batch: Batch, request: VirtualRequest) -> VirtualReport:
    """Execute every rank's share of a batch, rank by rank, in the given layers.

    Raises
    ------
    InputError
        If batch, model or device do not fit.
    VerificationError
        If the rows of the slots are not the choices of the batch.
    """
    model = request.model
    predicted = predict(
        placement, batch, model, request.calibration, dtype=request.dtype, rule=request.rule, layers=request.layers
    )
    check_every_choice_is_executed(placement, batch, predicted)
    shape = ExpertShape(model.hidden_size, model.intermediate_size, request.dtype)
    ranks = VirtualRanks(placement.topology, shape, request.device)
    measured = [ranks.measure(slots, repeats=request.repeats) for slots in predicted.slot_tokens]
    return VirtualReport(predicted, np.stack(measured))


def check_every_choice_is_executed(placement: Placement, batch: Batch, predicted: LayerTimes) -> None:
    """Recount the rows of every expert.

    Raises
    ------
    VerificationError
        If the slots of an expert do not execute its choices.
    """
    layers: Sequence[int] = predicted.layers
    for layer, slots in zip(layers, predicted.slot_tokens, strict=True):
        row = placement.physical_to_logical_map[layer]
        executed = np.bincount(row[row >= 0], weights=slots[row >= 0], minlength=placement.num_experts)
        if not np.array_equal(executed, batch.load[layer]):
            expert = int(np.argmax(executed != batch.load[layer]))
            raise VerificationError(
                f"layer {layer}, expert {expert}: {executed[expert]:g} rows executed, "
                f"expected the {batch.load[layer, expert]} choices of the batch"
            )
