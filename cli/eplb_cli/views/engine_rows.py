"""Shows what each engine's own algorithm and eplb make of one load, under the engine's dispatch rule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb_cli import output
from eplb_cli.views import cost_rows

if TYPE_CHECKING:
    from eplb.core.topology import Topology
    from eplb.evaluation.metrics import Evaluation
    from eplb.evaluation.step_cost import PredictedStep, StepBatch, StepCost
    from eplb.planning.engine_comparison import EngineComparison
    from eplb_traces import ExpertLoad

_HEADINGS = ("engine", "dispatch", "plan", "max/mean", "worst", "own metric")
_LEGEND = """\
max/mean: load of the busiest rank over the mean, mean and worst of the layers, under the engine's dispatch rule
own: the engine's algorithm, or experts in order where it is not known here; eplb: planned for the rule"""


def show_engines(  # noqa: PLR0913  # the keywords of `compare_engines`
    load: "ExpertLoad",
    topology: "Topology",
    title: str,
    *,
    groups: int | None,
    sources: Sequence[float] | None,
    seed: int,
    cost: "StepCost | None",
    batch: "StepBatch | None",
    as_csv: bool,
    as_json: bool,
) -> None:
    """Compare all engines and print the result."""
    from eplb.dispatch.engine_dispatch import ENGINES
    from eplb.planning.engine_comparison import compare_engines
    from eplb.planning.engine_target import EngineTarget

    targets = [EngineTarget.named(name) for name in ENGINES]
    found: list[EngineComparison] = []
    with output.progress("comparing", len(targets)) as step:
        for target in targets:
            found += compare_engines(load, topology, [target], groups=groups, sources=sources, seed=seed)
            step()
    own = cost_rows.predict_each(cost, batch, [one.own for one in found])
    ours = cost_rows.predict_each(cost, batch, [one.ours for one in found])
    steps, choices = list(zip(own, ours, strict=True)), cost_rows.choices_of(cost, batch)
    engines = [_as_object(one, *of) for one, of in zip(found, steps, strict=True)]
    if as_csv:
        output.csv_rows(engines)
        return
    if as_json:
        output.json_object({"load": title, **cost_rows.head(cost, choices), "engines": engines})
        return
    rows = [
        row
        for one, of in zip(found, steps, strict=True)
        for row in (_row(one, "own", one.own, of[0]), _row(one, "eplb", one.ours, of[1]))
    ]
    headings = (*_HEADINGS, *cost_rows.headings(cost))
    size = output.counted(topology.num_ranks, "rank")
    output.table(f"{title} on {size}{cost_rows.in_title(cost)}", headings, rows, legend=_LEGEND, num_keys=3)
    output.facts("Own metrics and algorithms", [(one.target.engine, _about(one)) for one in found])
    cost_rows.note(cost, choices)


def _row(
    of: "EngineComparison", name: str, evaluation: "Evaluation", step: "PredictedStep | None"
) -> tuple[output.Cell, ...]:
    balance = evaluation.balance
    return (
        of.target.engine,
        of.target.rule.value,
        of.target.own.plan_name if name == "own" else name,
        balance["max_over_mean_mean"],
        balance["max_over_mean_worst"],
        of.target.metric(evaluation)[1],
        *cost_rows.cells(cost_rows.seconds_of(step)),
    )


def _about(of: "EngineComparison") -> str:
    return f"{of.target.metric(of.ours)[0]}; own: {of.target.own.label}"


def _as_object(of: "EngineComparison", own: "PredictedStep | None", ours: "PredictedStep | None") -> dict[str, object]:
    row = of.target.chosen.row
    return {
        "engine": of.target.engine,
        "version": row.version,
        "dispatch": of.target.rule.value,
        "evidence": row.evidence.value,
        "metric": of.target.metric(of.ours)[0],
        "own": {"algorithm": of.target.own.label, **_values(of, of.own), **cost_rows.fields(own)},
        "eplb": {"strategy": of.ours_strategy, **_values(of, of.ours), **cost_rows.fields(ours)},
    }


def _values(of: "EngineComparison", evaluation: "Evaluation") -> dict[str, float | int]:
    return {"engine_metric": of.target.metric(evaluation)[1], **evaluation.summary()}
