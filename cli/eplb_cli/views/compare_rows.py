"""Shows plans of several strategies or files side by side: tables, CSV rows, JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from eplb_cli import output
from eplb_cli.arguments.engine import Dispatch
from eplb_cli.views import cost_rows
from eplb_cli.views.gain_rows import before_object
from eplb_cli.views.metric_rows import layer_objects

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.evaluation.metrics import Evaluation
    from eplb.evaluation.step_cost import PredictedStep, StepBatch, StepCost

_HEADINGS = ("max/mean", "worst", "gap %", "worst", "vLLM", "SGLang", "duplicates", "ms")
_LEGEND = """\
max/mean: load of the busiest rank over the mean, mean and worst of the layers
gap: above the proven lower bound; vLLM, SGLang: what they call balancedness
duplicates: slots with an expert that its rank holds already; ms: to plan"""


@final
@dataclass(frozen=True, eq=False)
class Row:
    """A plan that a strategy made now, or that was read from a file, and its evaluation."""

    name: str
    plan: "Plan"
    evaluation: "Evaluation"
    is_from_file: bool = False


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """The rows, and what is shown of all of them.

    Parameters
    ----------
    heading
        What a row is: a plan or a strategy.
    before
        The experts in order, with no redundant ones.
    predictor, batch
        None without the options of a step's seconds; `steps` has None for each row then.
    """

    rows: Sequence[Row]
    heading: str
    title: str
    by: Dispatch
    before: "Evaluation"
    predictor: "StepCost | None"
    batch: "StepBatch | None"
    steps: "Sequence[PredictedStep | None]"

    def objects(self) -> list[dict[str, object]]:
        """The rows with every metric."""
        rows = zip(self.rows, self.steps, strict=True)
        return [_as_object(row, self.by) | cost_rows.fields(step) for row, step in rows]

    def as_object(self) -> dict[str, object]:
        """All that is known, for JSON."""
        from eplb.core.baseline import EXPERTS_IN_ORDER

        cost = cost_rows.head(self.predictor, cost_rows.choices_of(self.predictor, self.batch))
        before = before_object(EXPERTS_IN_ORDER, self.before)
        return {"dispatch": self.by.rule.value, **cost, "before": before, "strategies": self.objects()}

    def show(self) -> None:
        """Print the tables."""
        from eplb.core.baseline import EXPERTS_IN_ORDER
        from eplb.planning.gain import mean_max_over_mean

        output.table(self.title, (self.heading, *_HEADINGS), [_cells(row) for row in self.rows], legend=_LEGEND)
        today = mean_max_over_mean(self.before)
        output.line(f"today ({EXPERTS_IN_ORDER}, no redundant ones): max/mean {today:.4f}")
        rows = zip(self.rows, self.steps, strict=True)
        of_rows = [(row.name, mean_max_over_mean(row.evaluation), step) for row, step in rows]
        cost_rows.table(self.predictor, self.heading, of_rows)
        cost_rows.note(self.predictor, cost_rows.choices_of(self.predictor, self.batch))
        if self.by.target is not None:
            metrics = [self.by.target.metric(row.evaluation) for row in self.rows]
            of_engine = [(row.name, value) for row, (_, value) in zip(self.rows, metrics, strict=True)]
            output.table(metrics[0][0], (self.heading, "value"), of_engine)


def _cells(row: Row) -> tuple[output.Cell, ...]:
    summary = row.evaluation.summary()
    return (
        row.name,
        summary["max_over_mean_mean"],
        summary["max_over_mean_worst"],
        output.percentage(summary["gap_mean"]),
        output.percentage(summary["gap_worst"]),
        summary["balancedness_vllm"],
        summary["balancedness_sglang"],
        summary["duplicate_slots"],
        "-" if row.is_from_file else output.milliseconds(row.plan.seconds),
    )


def _as_object(row: Row, by: Dispatch) -> dict[str, object]:
    plan = row.plan
    seconds = None if row.is_from_file else plan.seconds
    head = {"strategy": plan.strategy, "status": plan.status.value, "seconds": seconds, "seed": plan.seed}
    of_file = {"plan": row.name} if row.is_from_file else {}
    of_engine = by.metric_fields(row.evaluation)
    by_layer = {"notes": list(plan.notes), "layers": layer_objects(row.evaluation)}
    return of_file | head | of_engine | row.evaluation.summary() | by_layer
