"""Executes the steps of a history on virtual ranks, under several schedules of placements.

A step costs the expert FFN of the slowest rank of each layer, measured, and the weights that travel meanwhile. Dispatch
and combine are not executed. Every rank of every step is executed: no time is taken from another step.
"""

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
from eplb.cost.placement_schedule import PlacementSchedule
from eplb.cost.step_time import predict
from eplb.errors import InputError
from eplb.runtime.calibration.timers import WARM_S
from eplb.runtime.virtual.virtual_ranks import ExpertShape, VirtualRanks
from eplb.runtime.virtual.virtual_verify import check_every_choice_is_executed
from eplb_traces import ExpertLoad

PERCENTILES = (50, 95, 99)


@final
@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """What to execute.

    Parameters
    ----------
    load
        The history, one window a step.
    model
        Sizes of an expert, and choices of a token.
    calibration
        For the prediction.
    dtype
        Type of the weights.
    device
        "cuda" or "cpu".
    rule
        How an expert's tokens are split over its replicas.
    tokens_per_rank
        Every step's counts are multiplied so that a rank has so many tokens in the mean layer; 0: as recorded.

    Raises
    ------
    InputError
        If the history is of a model with other experts or choices, or a number is below 0.
    """

    load: ExpertLoad
    model: ModelSizes
    calibration: Calibration
    dtype: str = "bf16"
    device: str = "cuda"
    rule: DispatchRule = DispatchRule.EVEN
    tokens_per_rank: int = 0

    def __post_init__(self) -> None:
        if self.tokens_per_rank < 0:
            raise InputError(f"tokens_per_rank = {self.tokens_per_rank}: expected >= 0")
        shape, model = self.load.shape, self.model
        if shape.num_experts != model.num_experts or shape.top_k not in (None, model.top_k):
            raise InputError(
                f"a history of {shape.num_experts} experts, top-{shape.top_k}: "
                f"model {model.name} has {model.num_experts}, top-{model.top_k}"
            )

    def batch(self, step: int, num_ranks: int) -> Batch:
        """The choices of a step; all ranks send the same."""
        counts, top_k = self.load.tokens[step], self.model.top_k
        if self.tokens_per_rank:
            counts = counts * (self.tokens_per_rank * num_ranks * top_k / counts.sum(axis=1).mean())
        return Batch.evenly_sent(np.round(counts), num_ranks=num_ranks, top_k=top_k)


@final
@dataclass(frozen=True, eq=False)
class StepTimes:
    """Seconds of every step under one schedule."""

    schedule: PlacementSchedule
    measured_s: Floats
    """[steps, L] FFN of the slowest rank."""
    predicted_s: Floats
    """[steps, L] the same by the calibration."""

    @property
    def step_s(self) -> Floats:
        """[steps] measured FFN of all layers, and the migration."""
        return np.asarray(self.measured_s.sum(axis=1) + self.schedule.migration_s)

    def percentile_s(self, percent: float) -> float:
        """Of `step_s`, linear between two steps."""
        return float(np.percentile(self.step_s, percent))

    @property
    def error(self) -> Floats:
        """Predicted over measured FFN of the layers with tokens, minus 1."""
        known = self.measured_s > 0
        return np.asarray(self.predicted_s[known] / self.measured_s[known] - 1)

    def summary(self) -> dict[str, object]:
        """The figures by name, as `--json` prints them."""
        schedule = self.schedule
        return {
            "name": schedule.name,
            "num_slots": schedule.placements[0].num_slots,
            "num_steps": len(schedule.placements),
            "mean_s": float(self.step_s.mean()),
            **{f"p{percent}_s": self.percentile_s(percent) for percent in PERCENTILES},
            "ffn_mean_s": float(self.measured_s.sum(axis=1).mean()),
            "predicted_ffn_mean_s": float(self.predicted_s.sum(axis=1).mean()),
            "median_error": float(np.median(np.abs(self.error))),
            "migration_s": float(schedule.migration_s.sum()),
            "moved_copies": schedule.moved_copies,
            "step_s": self.step_s.tolist(),
        }


def replay(schedules: Sequence[PlacementSchedule], request: ReplayRequest) -> tuple[StepTimes, ...]:
    """Execute every step under every schedule, one schedule after the other in each step.

    A device that becomes slower meanwhile is slower for all schedules.

    Raises
    ------
    InputError
        If a schedule is of another model, or ends at another step than the history.
    VerificationError
        If the rows of the slots are not the choices of the step.
    """
    for one in schedules:
        _check_fits(one, request.load)
    measured = [np.zeros((len(one.placements), request.load.num_layers)) for one in schedules]
    predicted = [np.zeros_like(seconds) for seconds in measured]
    devices = [_ranks(one, request) for one in schedules]
    for step in range(request.load.num_windows):
        for i, one in enumerate(schedules):
            served = step - one.first_step
            if served >= 0:
                warm_s = 0.0 if served else WARM_S
                measured[i][served], predicted[i][served] = _execute(
                    one.placements[served], step, request, devices[i], warm_s
                )
    return tuple(StepTimes(*parts) for parts in zip(schedules, measured, predicted, strict=True))


def _execute(
    placement: Placement, step: int, request: ReplayRequest, ranks: VirtualRanks, warm_s: float
) -> tuple[Floats, Floats]:
    """[L] measured and predicted makespan of a step."""
    batch = request.batch(step, placement.topology.num_ranks)
    times = predict(placement, batch, request.model, request.calibration, dtype=request.dtype, rule=request.rule)
    check_every_choice_is_executed(placement, batch, times)
    makespans = [ranks.measure(slots, repeats=1, warm_s=warm_s).max() for slots in times.slot_tokens]
    return np.array(makespans), times.makespan_s


def _ranks(schedule: PlacementSchedule, request: ReplayRequest) -> VirtualRanks:
    shape = ExpertShape(request.model.hidden_size, request.model.intermediate_size, request.dtype)
    return VirtualRanks(schedule.placements[0].topology, shape, request.device)


def _check_fits(schedule: PlacementSchedule, load: ExpertLoad) -> None:
    end = schedule.first_step + len(schedule.placements)
    if schedule.first_step < 0 or end != load.num_windows:
        raise InputError(f"{schedule.name}: the last step is {end - 1}: expected {load.num_windows - 1} of the history")
    for placement in schedule.placements:
        placement.check_model(load.shape, "history", name=schedule.name)
