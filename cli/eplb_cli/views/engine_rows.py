"""Shows what each engine's own algorithm and eplb make of one load, under the engine's dispatch rule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.core.topology import Topology
    from eplb.evaluation.metrics import Evaluation
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
    if as_json:
        output.json_object({"load": title, "engines": [_as_object(one) for one in found]})
        return
    rows = [row for one in found for row in (_row(one, "own", one.own), _row(one, "eplb", one.ours))]
    output.table(f"{title} on {output.counted(topology.num_ranks, 'rank')}", _HEADINGS, rows)
    output.facts("Own metrics and algorithms", [(one.target.engine, _about(one)) for one in found])
    output.note(_LEGEND)


def _row(of: "EngineComparison", name: str, evaluation: "Evaluation") -> tuple[output.Cell, ...]:
    balance = evaluation.balance
    return (
        of.target.engine,
        of.target.rule.value,
        of.target.own.strategy if name == "own" else name,
        balance["max_over_mean_mean"],
        balance["max_over_mean_worst"],
        of.target.metric(evaluation)[1],
    )


def _about(of: "EngineComparison") -> str:
    return f"{of.target.metric(of.ours)[0]}; own: {of.target.own.label}"


def _as_object(of: "EngineComparison") -> dict[str, object]:
    row = of.target.chosen.row
    return {
        "engine": of.target.engine,
        "version": row.version,
        "dispatch": of.target.rule.value,
        "evidence": row.evidence.value,
        "metric": of.target.metric(of.ours)[0],
        "own": {"algorithm": of.target.own.label, **_values(of, of.own)},
        "eplb": {"strategy": of.ours_strategy, **_values(of, of.ours)},
    }


def _values(of: "EngineComparison", evaluation: "Evaluation") -> dict[str, float | int]:
    return {"engine_metric": of.target.metric(evaluation)[1], **evaluation.summary()}
