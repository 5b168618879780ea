"""Plans for prefill and decode apart and for both at once, and predicts the step time of each plan in both phases."""

from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.problem import Plan, Problem
from eplb.errors import InputError
from eplb.planning.phase import PhaseStrategy, PhaseTarget, StepClock
from eplb.strategies.step_time.makespans import draw_batches
from eplb.strategies.step_time.step_time import StepLoad, StepTime
from eplb_traces import ExpertLoad

_NUM_BATCHES: Final = 16


@final
@dataclass(frozen=True, eq=False)
class PhaseProblem:
    """One phase: what is to be planned for its load, and what its steps are."""

    problem: Problem
    target: PhaseTarget

    @property
    def rows(self) -> Floats:
        """[L, E] expected choices of each expert in a step."""
        return self.target.rows(self.problem.load.total, self.problem.topology.num_ranks)


@final
@dataclass(frozen=True, eq=False)
class PhasePlans:
    """The plan of each phase, one plan for both, and what each of the three costs in either phase."""

    prefill: Plan
    decode: Plan
    shared: Plan
    """Made for both: the step time relative to the phase's own plan decides, that of the slower phase most."""
    seconds: Floats
    """[3, 2] of the plans prefill, decode and shared, in prefill and in decode: mean of the layers with load."""

    @property
    def price(self) -> Floats:
        """[3, 2] by how much each plan is slower than the plan of the phase, relative."""
        return np.asarray(self.seconds / np.diagonal(self.seconds) - 1)


def plan_phases(prefill: PhaseProblem, decode: PhaseProblem, *, seed: int = 0) -> PhasePlans:
    """Make one plan for each phase and one for both, for the same ranks.

    Parameters
    ----------
    prefill, decode
        The two phases of one model on one GPU; their problems differ in the load alone.
    seed
        As in `plan`.

    Raises
    ------
    InputError
        If the phases differ in more than load and steps.
    """
    _check_same(prefill, decode)
    phases = (prefill, decode)
    own = [PhaseStrategy(one.target)(one.problem, seed=seed) for one in phases]
    clocks = [StepClock(draw_batches(one.rows, _NUM_BATCHES, seed + 1), one.target.ffn) for one in phases]
    loads = []
    for one, made, clock in zip(phases, own, clocks, strict=True):
        reference = clock.layer_seconds(made.placement)
        loads.append(StepLoad(rows=one.rows, reference_s=np.where(reference > 0, reference, 1.0)))
    both = ExpertLoad(np.stack([one.problem.load.total for one in phases]), shape=prefill.problem.load.shape)
    shared = StepTime(ffn=prefill.target.ffn, loads=tuple(loads))(replace(prefill.problem, load=both), seed=seed)
    seconds = [[clock.seconds(made.placement) for clock in clocks] for made in (*own, shared)]
    return PhasePlans(own[0], own[1], shared, np.array(seconds))


def _check_same(prefill: PhaseProblem, decode: PhaseProblem) -> None:
    first, second = prefill.problem.load.shape, decode.problem.load.shape
    if (first.num_layers, first.num_experts) != (second.num_layers, second.num_experts):
        raise InputError(
            f"decode load of {second.num_layers} layers x {second.num_experts} experts: the prefill load is of "
            f"{first.num_layers} layers x {first.num_experts} experts, another model"
        )
    if replace(decode.problem, load=prefill.problem.load) != prefill.problem:
        raise InputError("prefill and decode: expected the same topology, dispatch rule and constraints")
    if (prefill.target.model, prefill.target.calibration) != (decode.target.model, decode.target.calibration):
        raise InputError("prefill and decode: expected the same model and calibration")
