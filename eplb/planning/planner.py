"""Picks a strategy and runs it: `plan` and `compare`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from eplb.arguments.accepted import LoadLike, TraceLike, accepted_load, accepted_topology, accepted_trace
from eplb.core.constraints import Constraints
from eplb.core.counts import check_seed
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.problem import NO_CONSTRAINTS, GroupMode, Plan, Problem, Strategy, Survive
from eplb.core.topology import Topology
from eplb.cost import Calibration, ModelSizes
from eplb.dispatch.optimal_shares import weighted_placement
from eplb.dispatch.replica_shares import NEAREST_RULES
from eplb.evaluation.failures import after_loss
from eplb.evaluation.metrics import Evaluation, evaluate, off_node_replicas
from eplb.planning.backtest import LEAST_WINDOWS, Candidate, backtest, recent, rehearsal, whole
from eplb.planning.held_out_requests import held_out_notes, split_requests
from eplb.planning.own_plan import plan_of
from eplb.planning.phase import PhaseStrategy, phase_strategy, phase_target
from eplb.strategies import ONLY_WHEN_NAMED, STRATEGIES, StrategyLike, accepted_strategy
from eplb.strategies.certify import recertified
from eplb.strategies.options import HONOURED, PlanOption, check_options
from eplb.strategies.own_strategy import OwnStrategy
from eplb.strategies.scenario.scenario import Scenario
from eplb_traces.display import cut, facts_html
from eplb_traces.jit import WorkClock

if TYPE_CHECKING:
    import pandas as pd

AUTO = "auto"

CANDIDATES = (
    Candidate("greedy on the sum", STRATEGIES["greedy"], whole),
    Candidate("greedy on the last quarter", STRATEGIES["greedy"], recent),
    Candidate("scenario", STRATEGIES["scenario"], whole),
    Candidate("scenario, deviations as they were", Scenario(amplification=1.0), whole),
    Candidate("scenario on the last quarter", STRATEGIES["scenario"], recent),
)
"""The candidates of `auto` on a history that is long enough for a backtest."""
NEAREST_CANDIDATES = (*CANDIDATES, Candidate("biased", STRATEGIES["biased"], whole))
"""The same where a rank prefers a near replica."""


def candidates_under(rule: DispatchRule) -> tuple[Candidate, ...]:
    """The candidates of a backtest under a dispatch rule."""
    return NEAREST_CANDIDATES if rule in NEAREST_RULES else CANDIDATES


def plan(  # noqa: PLR0913  # everything that a plan can depend on, by keyword
    load: LoadLike,
    topology: Topology,
    strategy: StrategyLike = AUTO,
    *,
    groups: int | None = None,
    group_mode: str = GroupMode.FREE,
    group_price: float = 0.0,
    dispatch: str = DispatchRule.EVEN,
    constraints: Constraints = NO_CONSTRAINTS,
    time_limit_s: float | None = None,
    survive: str | None = None,
    sources: Sequence[float] | None = None,
    trace: TraceLike | None = None,
    load_cap: float | None = None,
    phase: str | None = None,
    calibration: str | Calibration | None = None,
    model: str | ModelSizes | None = None,
    tokens_per_rank: int | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Plan:
    """Decide where every expert lives.

    Parameters
    ----------
    load
        The load to plan for, a trace, tokens as an array [E], [L, E] or [W, L, E], or the path of a file. Windows
        without a token are left out, and a note says so.
    topology
        Ranks, nodes and slots.
    strategy
        A name of `eplb.strategies.STRATEGIES`; "auto": the planner picks one and gives the reason in the notes; or a
        strategy of your own: a function of the problem and a seed that returns a `Plan` or the map [L, P], an object
        as `eplb.core.problem.Strategy` describes it, its class, "module:object", or the name of an installed one.
    groups
        Expert groups of the model; by default those of the load's shape.
    group_mode
        "free", "pinned" or "priced": whether each group stays on one node, or off-node replicas have a locality
        penalty, which only `greedy` supports.
    group_price
        With "priced", by how much an off-node replica (not on its group's home node) must lower a layer's busiest over
        mean rank.
    dispatch
        How the runtime splits an expert's tokens over its replicas: the plan balances the load that this rule gives
        each replica. With "weighted" the plan carries the shares that are best for the load.
    constraints
        Hard constraints on every layer, for `greedy`, `scenario` and `ilp`; "auto" takes `greedy` then.
    time_limit_s
        Wall time of `ilp`, which searches until it has a proof, all layers together; two calls that it ends may differ.
        None: the deterministic default of `ilp`.
    survive
        "rank" or "node": every expert has a replica left after the loss of any one of them, and the notes give the
        growth of the busiest rank; only `greedy` plans for that. None: losses need not be survived.
    sources
        [R] share of the tokens that each rank sends, for rules by which the rank of a token decides its replica; None:
        all alike.
    trace
        Token-level choices of the same model, or their file, for `traffic`: every fifth request is held out, and a
        note gives the plan's nodes a token on these requests.
    load_cap
        Most busiest over mean rank load, for `traffic`; None: 1.03.
    phase
        "prefill", "decode" or "mixed": plan for the predicted step time, the expert FFN of the slowest rank, instead of
        tokens. The strategy is then `step_time`; `step_prediction` of the plan has the times, a note says whether the
        redundant slots pay. Under "weighted" dispatch some may get no tokens.
    calibration, model
        With a phase: the GPU (its short name, a calibration or its file) and the model's sizes (a preset's name, a
        config.json or the sizes).
    tokens_per_rank, dtype
        With a phase: tokens of each rank in a step (None: 4096, 128 or 1024), and the type of the experts' weights
        (None: the model's).
    seed
        For randomised strategies; the same inputs and seed give the same plan, unless `time_limit_s` ends the search.

    Raises
    ------
    InputError
        For an all-zero load, a negative seed, an unknown name, too few slots, groups that do not fit, or a strategy of
        your own that answers with a plan for another problem.
    InfeasibleError
        If no placement meets the constraints, or survives the loss.

    Examples
    --------
    >>> import eplb
    >>> load = [[1.0, 2.0, 3.0, 10.0]]  # tokens of one layer of four experts
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)
    >>> eplb.plan(load, topology)
    Plan(greedy, 1 layer of 4 experts on 2 ranks, 6.25 % above the bound at worst)
    >>> eplb.plan(load, topology).placement.physical_to_logical_map
    array([[3, 1, 2, 3, 2, 0]], dtype=int32)
    """
    clock = WorkClock()
    check_seed(seed)
    load = accepted_load(load)
    given = load.without_empty_windows()
    problem = Problem(
        given,
        accepted_topology(topology),
        num_groups=load.shape.num_expert_groups if groups is None else groups,
        group_mode=GroupMode.named(group_mode),
        group_price=group_price,
        dispatch=DispatchRule.named(dispatch),
        constraints=constraints,
        time_limit_s=time_limit_s,
        survive=Survive.NOTHING if survive is None else Survive.named(survive),
        sources=sources,
        trace=None if trace is None else accepted_trace(trace),
        load_cap=load_cap,
    )
    target = phase_target(phase, calibration, model, tokens_per_rank, dtype)
    asked = strategy if target is None else phase_strategy(strategy, target)
    chosen, problem, notes = _choose(asked, problem, seed)
    if not isinstance(chosen, OwnStrategy):
        check_options(problem, chosen.name)
    num_empty = int(load.empty_windows.sum())
    if num_empty:
        notes += (f"{num_empty} of {load.num_windows} windows have no token and were left out",)
    held_out = None
    if problem.trace is not None:
        fit, held_out = split_requests(problem.trace)
        problem = replace(problem, trace=fit)
    made = plan_of(chosen, problem, seed=seed)
    if problem.load.num_windows < given.num_windows:
        notes += (f"planned on the last {problem.load.num_windows} windows; claims are for all {given.num_windows}",)
        problem = replace(problem, load=given)
        made = recertified(made, problem)
    if problem.dispatch is DispatchRule.WEIGHTED and target is None:
        made = replace(made, placement=weighted_placement(made.placement, problem.load))
    if problem.trace is not None:
        notes += held_out_notes(made, problem, held_out, seed)
    if problem.survive is not Survive.NOTHING:
        notes += _loss_notes(made, problem)
    if problem.group_mode is GroupMode.PRICED:
        off_node = off_node_replicas(made.placement, problem.num_groups)
        notes += (
            f"off-node replicas (not on their group's home node): {off_node.mean():.1f} of {topology.num_slots} in the "
            f"mean layer, at most {off_node.max()}",
        )
    digest = load.digest if made.load_digest == problem.load.digest else made.load_digest
    return replace(made, seconds=clock.seconds(), notes=notes + made.notes, load_digest=digest)


def _loss_notes(made: Plan, problem: Problem) -> tuple[str, ...]:
    """What the loss of a unit does; the figures are of an even split, also where the plan is for another rule."""
    notes = after_loss(made.placement, problem.load, unit=problem.survive).notes
    if problem.dispatch in EVEN_RULES:
        return notes
    return tuple(f"under even dispatch, not {problem.dispatch}: {note}" for note in notes)


def _choose(strategy: StrategyLike, problem: Problem, seed: int) -> tuple[Strategy, Problem, tuple[str, ...]]:
    """Find the strategy by name, or choose one by the load; the returned problem may have less history."""
    if isinstance(strategy, PhaseStrategy):
        return strategy, problem, ()
    if strategy != AUTO:
        return accepted_strategy(strategy), problem, ()
    if problem.survive is not Survive.NOTHING:
        return STRATEGIES["greedy"], problem, (f"auto: greedy, which plans for the loss of a {problem.survive}",)
    if problem.group_mode is GroupMode.PRICED:
        return STRATEGIES["greedy"], problem, ("auto: greedy, which supports the locality penalty",)
    if not problem.constraints.is_empty:
        return STRATEGIES["greedy"], problem, ("auto: greedy, which meets hard constraints",)
    return _by_history(problem, seed)


def _by_history(problem: Problem, seed: int) -> tuple[Strategy, Problem, tuple[str, ...]]:
    """Choose by the number of windows, and by a backtest where there are enough."""
    num_windows = problem.load.num_windows
    if num_windows == 1:
        return STRATEGIES["greedy"], problem, ("auto: greedy, the load is one window",)
    if num_windows < LEAST_WINDOWS:
        return STRATEGIES["scenario"], problem, (f"auto: scenario, one plan for all {num_windows} windows",)
    trial = rehearsal(problem)
    scores = backtest(trial, candidates_under(problem.dispatch), seed=seed)
    notes = tuple(
        f"backtest: {score.candidate.name}: max/mean {score.planned:.3f} as planned, {score.mean:.3f} "
        f"(p95 {score.p95:.3f}) on the held-out end"
        for score in scores
    )
    best = scores[0]
    change = "worse" if best.predicted_loss >= 0 else "better"
    chosen = (
        f"auto: {best.candidate.name}, the best of {len(scores)}{_of_trial(trial, problem)}; on the held-out end its "
        f"busiest / mean rank is "
        f"{abs(best.predicted_loss):.3f} {change} than as planned"
    )
    history = best.candidate.history(problem.load)
    return best.candidate.strategy, replace(problem, load=history), (chosen, *notes)


def _of_trial(trial: Problem, problem: Problem) -> str:
    """How the backtest differs from the problem."""
    layers, num_layers = trial.load.num_layers, problem.load.num_layers
    parts = [f"{layers} of {num_layers} layers"] if layers < num_layers else []
    parts += [f"under {trial.dispatch}"] if trial.dispatch is not problem.dispatch else []
    return f" ({', '.join(parts)})" if parts else ""


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """One strategy's plan and its evaluation."""

    plan: Plan
    evaluation: Evaluation

    def __repr__(self) -> str:
        mean, worst = self.evaluation.balance["max_over_mean_mean"], self.evaluation.balance["max_over_mean_worst"]
        return cut(f"Comparison({self.plan.strategy}, max/mean {mean:.4f}, worst {worst:.4f})")

    def _repr_html_(self) -> str:
        return facts_html(f"Comparison: {self.plan.strategy}", self.evaluation.summary())

    def to_frame(self) -> "pd.DataFrame":
        """One row: strategy, status, seconds, and every metric of `Evaluation.summary`."""
        import pandas as pd

        head = {"strategy": self.plan.strategy, "status": self.plan.status.value, "seconds": self.plan.seconds}
        return pd.DataFrame([{**head, **self.evaluation.summary()}])


def compare(  # noqa: PLR0913  # the same keywords as plan()
    load: LoadLike,
    topology: Topology,
    strategies: Sequence[StrategyLike] | None = None,
    *,
    groups: int | None = None,
    group_mode: str = GroupMode.FREE,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Plan with several strategies and evaluate each on the same load.

    By default all that plan in milliseconds, with "pinned" those that can pin groups.

    Parameters are as in `plan`, strategies of your own included. Every strategy is run once before it is timed, so that
    compilation is not counted.

    Examples
    --------
    >>> import eplb
    >>> load = [[1.0, 2.0, 3.0, 10.0]]  # tokens of one layer of four experts
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)
    >>> for one in eplb.compare(load, topology, ["linear", "greedy"]):
    ...     print(one)
    Comparison(linear, max/mean 1.4375, worst 1.4375)
    Comparison(greedy, max/mean 1.0625, worst 1.0625)
    """
    load = accepted_load(load)
    results = []
    quick = [name for name in STRATEGIES if name not in ONLY_WHEN_NAMED]
    if group_mode == GroupMode.PINNED:
        quick = [name for name in quick if PlanOption.PINNED in HONOURED[name]]
    for name in quick if strategies is None else strategies:
        for _ in range(2):
            made = plan(
                load,
                topology,
                name,
                groups=groups,
                group_mode=group_mode,
                dispatch=dispatch,
                sources=sources,
                seed=seed,
            )
        results.append(Comparison(made, evaluate(made.placement, load, dispatch, sources=sources)))
    return tuple(results)
