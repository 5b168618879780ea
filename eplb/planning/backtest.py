"""Scores strategies by a backtest: plan on the first part of a history, evaluate on the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.counts import check_seed
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.problem import Problem, Strategy
from eplb.dispatch.optimal_shares import placement_under
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate, mean_of_known, p95_of_known
from eplb.planning.own_plan import plan_of
from eplb_traces import ExpertLoad
from eplb_traces.display import cut, facts_html

LEAST_WINDOWS = 8  # below this the held-out end is too short to tell candidates apart
LAYERS_TO_SCORE = 8
"""Layers on which "auto" scores its candidates."""
LAYERS_TO_SCORE_UNDER_RULE = 4
"""The same where replicas do not share evenly: planning is several times slower."""


@final
@dataclass(frozen=True)
class Candidate:
    """A strategy with the part of the history that it plans on."""

    name: str
    strategy: Strategy
    history: Callable[[ExpertLoad], ExpertLoad]


@final
@dataclass(frozen=True)
class Score:
    """Max/mean of a candidate on the held-out end, over windows and layers."""

    candidate: Candidate
    mean: float
    p95: float
    planned: float
    """On the windows it was planned on; `mean` minus this is the held-out loss."""

    def __repr__(self) -> str:
        return cut(f"Score({self.candidate.name}, held out {self.mean:.4f}, p95 {self.p95:.4f})")

    def _repr_html_(self) -> str:
        figures = {"held out": self.mean, "p95": self.p95, "as planned": self.planned, "loss": self.predicted_loss}
        return facts_html(f"Score: {self.candidate.name}", figures)

    @property
    def predicted_loss(self) -> float:
        """Held-out loss: how much higher max/mean is on the held-out end than as planned."""
        return self.mean - self.planned


def whole(load: ExpertLoad) -> ExpertLoad:
    """The history as it is."""
    return load


def recent(load: ExpertLoad) -> ExpertLoad:
    """The last quarter of the history."""
    return load.select(slice(-max(1, load.num_windows // 4), None))


def rehearsal(problem: Problem) -> Problem:
    """A smaller problem in which candidates rank as in the whole one: some layers, and no draws.

    The layers are evenly spaced. `sglang_static` is replaced by `sglang_dynamic`: its shares are the expectation over
    the draw, which costs more than the plan for many ranks and is no property of a strategy.
    """
    load, rule = problem.load, problem.dispatch
    most = LAYERS_TO_SCORE if rule in EVEN_RULES else LAYERS_TO_SCORE_UNDER_RULE
    if load.num_layers > most and problem.trace is None:
        load = load.select_layers(np.linspace(0, load.num_layers - 1, most).round().astype(int).tolist())
    rule = DispatchRule.SGLANG_DYNAMIC if rule is DispatchRule.SGLANG_STATIC else rule
    return replace(problem, load=load, dispatch=rule)


def backtest(
    problem: Problem,
    candidates: Sequence[Candidate],
    *,
    held_out: float = 0.25,
    seed: int = 0,
    on_score: Callable[[], None] | None = None,
) -> tuple[Score, ...]:
    """Score every candidate on the end of the history, best mean first; ties to the earlier candidate.

    Parameters
    ----------
    problem
        Its load is the history, windows in order of time, at least `LEAST_WINDOWS` of them with tokens. Windows without
        tokens are left out.
    candidates
        The strategies to score.
    held_out
        Share of the windows, at the end, that no candidate sees.
    seed
        For randomised strategies.
    on_score
        Called after each candidate.

    Raises
    ------
    InputError
        If the history is too short to hold windows out.
    """
    check_seed(seed)
    history = problem.load.without_empty_windows()
    num_windows = history.num_windows
    if num_windows < LEAST_WINDOWS:
        empty = problem.load.num_windows - num_windows
        left_out = f" ({empty} without a token left out)" if empty else ""
        raise InputError(
            f"a history of {num_windows} windows{left_out}: expected at least {LEAST_WINDOWS} to hold some out"
        )
    if not 0 < held_out < 1:
        raise InputError(f"held_out = {held_out}: expected a share between 0 and 1")
    split = min(num_windows - 1, max(1, round(num_windows * (1 - held_out))))
    past, held = history.select(slice(None, split)), history.select(slice(split, None))
    scores = []
    for candidate in candidates:
        asked = replace(problem, load=candidate.history(past))
        made = plan_of(candidate.strategy, asked, seed=seed)
        placement = placement_under(problem.dispatch, made.placement, asked.load)
        both = ExpertLoad(np.concatenate([asked.load.tokens, held.tokens]), shape=history.shape)
        balance = evaluate(placement, both, problem.dispatch, sources=problem.sources).max_over_mean_by_window
        planned, later = balance[: asked.load.num_windows], balance[asked.load.num_windows :]
        scores.append(Score(candidate, _mean(later), p95_of_known(later), _mean(planned)))
        if on_score is not None:
            on_score()
    return tuple(sorted(scores, key=lambda score: score.mean))


def _mean(by_window: Floats) -> float:
    """Mean over the windows and layers with tokens."""
    return float(mean_of_known(by_window.reshape(-1)))
