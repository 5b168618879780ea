"""Plans for the predicted step time of a phase, and says whether the redundant slots pay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.baseline import EXPERTS_IN_ORDER, experts_in_order
from eplb.core.counts import check_count
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import Plan, Problem
from eplb.core.step_prediction import PredictedStep, StepPrediction
from eplb.core.topology import Topology
from eplb.cost import Calibration, ModelSizes, Phase, RankFfn, model_sizes, named_calibration
from eplb.errors import InputError
from eplb.strategies.step_time.makespans import draw_batches, makespans
from eplb.strategies.step_time.step_time import StepLoad, StepTime

THIS_PLAN: Final = "this plan"
_NUM_BATCHES: Final = 16
_MOST_SLOT_COUNTS: Final = 3
_LEAST_GAIN: Final = 0.01  # relative step time below which two numbers of slots count as equal


@final
@dataclass(frozen=True, kw_only=True)
class PhaseTarget:
    """What a step is.

    Parameters
    ----------
    phase
        For words.
    tokens_per_rank
        Tokens of each rank in a step.
    model
        Sizes of an expert, choices of a token, and the type of the weights.
    calibration
        The GPU.

    Raises
    ------
    InputError
        If there is no token, or the calibration does not hold the type of the weights.
    """

    phase: Phase
    tokens_per_rank: int
    model: ModelSizes
    calibration: Calibration

    def __post_init__(self) -> None:
        check_count("tokens_per_rank", self.tokens_per_rank)
        self.calibration.ffn_of(self.model.dtype)

    @property
    def ffn(self) -> RankFfn:
        """Seconds of a rank."""
        return self.calibration.ffn_of(self.model.dtype).for_expert(
            self.model.hidden_size, self.model.intermediate_size
        )

    def rows(self, load: Floats, num_ranks: int) -> Floats:
        """[L, E] expected choices of each expert in a step, for a load [L, E]; 0 in a layer without load.

        Raises
        ------
        InputError
            If the load is of a model with another number of experts.
        """
        if load.shape[1] != self.model.num_experts:
            raise InputError(
                f"load of {load.shape[1]} experts a layer: model {self.model.name} has {self.model.num_experts}"
            )
        total = load.sum(axis=1, keepdims=True)
        share = np.divide(load, total, out=np.zeros_like(load), where=total > 0)
        return np.asarray(share * float(num_ranks * self.tokens_per_rank * self.model.top_k))

    def even_seconds(self, topology: Topology) -> float:
        """Seconds of a mean rank without redundancy, if every expert had the same rows."""
        per_rank = -(-self.model.num_experts // topology.num_ranks)
        rows = topology.num_ranks * self.tokens_per_rank * self.model.top_k / self.model.num_experts
        return float(self.ffn.seconds(np.full(per_rank, rows), np.array([0, per_rank]))[0])

    def prediction(self, steps: Sequence[PredictedStep]) -> StepPrediction:
        """The step times, with what they are of."""
        return StepPrediction(
            phase=self.phase.value,
            tokens_per_rank=self.tokens_per_rank,
            model=self.model.name,
            dtype=self.model.dtype,
            gpu=self.calibration.title,
            steps=tuple(steps),
        )


def phase_target(
    phase: str | None,
    calibration: str | Calibration | None,
    model: str | ModelSizes | None,
    tokens_per_rank: int | None = None,
    dtype: str | None = None,
) -> PhaseTarget | None:
    """The target that the words of `plan` describe; None without a phase.

    Raises
    ------
    InputError
        For a phase without calibration or model, any of the others without a phase, or an unknown name.
    """
    if phase is None:
        given = {"calibration": calibration, "model": model, "tokens_per_rank": tokens_per_rank, "dtype": dtype}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name}: has no effect without a phase, expected one of {', '.join(Phase)}")
        return None
    chosen = Phase.named(phase)
    if calibration is None or model is None:
        raise InputError(f"phase {chosen}: expected a calibration and a model, to predict seconds")
    sizes = model_sizes(model) if isinstance(model, str) else model
    return PhaseTarget(
        phase=chosen,
        tokens_per_rank=chosen.tokens_per_rank if tokens_per_rank is None else tokens_per_rank,
        model=sizes if dtype is None else replace(sizes, dtype=dtype),
        calibration=named_calibration(calibration) if isinstance(calibration, str) else calibration,
    )


@final
@dataclass(frozen=True, eq=False)
class PhaseStrategy:
    """`StepTime` for one phase of the problem's load, with the step times of other plans in the result."""

    target: PhaseTarget
    name: ClassVar[str] = StepTime.name
    summary: ClassVar[str] = StepTime.summary

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan, predict, and compare with fewer slots."""
        made = self._plan(problem, seed)
        topology, num_experts = problem.topology, problem.load.num_experts
        rows = self.target.rows(problem.load.total, topology.num_ranks)
        clock = StepClock(draw_batches(rows, _NUM_BATCHES, seed + 1), self.target.ffn)
        steps = []
        in_order = _even_ranks(topology, num_experts)
        if in_order is not None:
            steps.append(clock.step(EXPERTS_IN_ORDER, experts_in_order(len(rows), num_experts, in_order)))
        if problem.dispatch is DispatchRule.WEIGHTED and topology.num_slots > num_experts:
            full = self._plan(replace(problem, dispatch=DispatchRule.EVEN), seed)
            steps.append(clock.step("all slots get tokens", full.placement))
        own = clock.step(THIS_PLAN, made.placement)
        fewer = []
        for smaller in _fewer_slots(topology, num_experts):
            other = self._plan(replace(problem, topology=smaller), seed)
            name = f"{smaller.num_slots - num_experts} redundant"
            fewer.append(clock.step(name, other.placement))
        notes = redundancy_notes(self.target.phase, own, fewer, num_experts)
        return replace(made, notes=(*made.notes, *notes), step_prediction=self.target.prediction((*steps, own, *fewer)))

    def _plan(self, problem: Problem, seed: int) -> Plan:
        rows = self.target.rows(problem.load.total, problem.topology.num_ranks)
        reference = np.full(len(rows), self.target.even_seconds(problem.topology))
        return StepTime(ffn=self.target.ffn, loads=(StepLoad(rows=rows, reference_s=reference),))(problem, seed=seed)


def phase_strategy(strategy: object, target: PhaseTarget) -> PhaseStrategy:
    """The strategy that plans for a phase.

    Raises
    ------
    InputError
        If another one was asked for.
    """
    if strategy not in ("auto", PhaseStrategy.name):
        raise InputError(f"phase {target.phase}: strategy {strategy} ignores it, expected auto or {PhaseStrategy.name}")
    return PhaseStrategy(target)


@final
@dataclass(frozen=True, eq=False)
class StepClock:
    """Times placements on drawn batches, under the even split of each expert over its slots that get tokens."""

    batches: Ints
    """[B, L, E]"""
    ffn: RankFfn

    def layer_seconds(self, placement: Placement) -> Floats:
        """[L] slowest rank, mean of batches."""
        held = slots_with_tokens(placement)
        return np.asarray(
            makespans(self.batches, held, placement.topology.rank_first_slot, self.ffn.table).mean(axis=0)
        )

    def seconds(self, placement: Placement) -> float:
        """Mean of the layers with load."""
        return float(self.layer_seconds(placement)[self.batches.any(axis=(0, 2))].mean())

    def step(self, name: str, placement: Placement) -> PredictedStep:
        """The prediction of a placement."""
        cold = (slots_with_tokens(placement) == placement.num_experts).sum(axis=1)
        return PredictedStep(
            name=name, num_slots=placement.num_slots, num_cold=float(cold.mean()), seconds=self.seconds(placement)
        )


def slots_with_tokens(placement: Placement) -> Map:
    """[L, P] expert of each slot; E where the slot is empty or has weight 0."""
    held, weights = placement.physical_to_logical_map, placement.replica_weights
    cold = held < 0 if weights is None else weights == 0
    return np.where(cold, placement.num_experts, held).astype(np.int32)


def redundancy_notes(
    phase: Phase, own: PredictedStep, fewer: Sequence[PredictedStep], num_experts: int
) -> tuple[str, ...]:
    """Whether the slots beyond one an expert pay."""
    notes = []
    if own.num_cold:
        notes.append(
            f"{own.num_cold:.1f} of {own.num_slots - num_experts} redundant slots get no tokens (weight 0), mean of "
            "layers: giving them some would make the slowest rank slower"
        )
    if not fewer:
        return tuple(notes)
    best = min(fewer, key=lambda step: step.seconds)
    times = f"{best.num_slots} slots {1e3 * best.seconds:.3f} ms, {own.num_slots} slots {1e3 * own.seconds:.3f} ms"
    spare = best.num_slots - num_experts
    if best.seconds < own.seconds * (1 - _LEAST_GAIN):
        what = "redundancy does not pay" if spare == 0 else f"redundancy above {spare} does not pay"
        notes.append(f"{what} in {phase}: {times}; plan for --redundant {spare}")
    elif best.seconds > own.seconds * (1 + _LEAST_GAIN):
        notes.append(f"redundancy pays in {phase}: {times}")
    else:
        notes.append(f"redundancy makes no difference above {_LEAST_GAIN:.0%} in {phase}: {times}")
    return tuple(notes)


def _even_ranks(topology: Topology, num_experts: int) -> Topology | None:
    """The ranks with one slot an expert, as equal as possible; None if a rank would have none."""
    slots = np.diff(num_experts * np.arange(topology.num_ranks + 1) // topology.num_ranks)
    if slots.min() < 1:
        return None
    return replace(topology, slots_per_rank=tuple(slots.tolist()))


def _fewer_slots(topology: Topology, num_experts: int) -> list[Topology]:
    """Topologies with fewer slots a rank that still hold every expert: a few, the fewest first."""
    if not isinstance(topology.slots_per_rank, int):
        return []
    least = -(-num_experts // topology.num_ranks)
    counts = np.arange(least, topology.slots_per_rank)
    if counts.size > _MOST_SLOT_COUNTS:
        counts = counts[np.linspace(0, counts.size - 1, _MOST_SLOT_COUNTS).round().astype(int)]
    return [replace(topology, slots_per_rank=int(count)) for count in counts]
