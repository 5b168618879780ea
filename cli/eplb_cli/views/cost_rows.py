"""Makes the cells, notes and JSON fields of predicted steps; all are empty without --calibration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.evaluation.metrics import Evaluation
    from eplb.evaluation.step_cost import PredictedStep, StepBatch, StepCost
    from eplb_traces import ExpertLoad

_LEGEND = "FFN: mean rank; waiting: mean time until the slowest rank is done; step: their sum with the exchanges"
_LABELS = {
    "step": "predicted ms of all MoE layers",
    "dispatch": "  dispatch",
    "ffn": "  expert FFN, mean rank",
    "waiting": "  waiting for the slowest rank",
    "combine": "  combine",
}


def predict_each(
    cost: "StepCost | None", batch: "StepBatch | None", evaluations: "Sequence[Evaluation]"
) -> "list[PredictedStep | None]":
    """The step of each placement under the rule that it is evaluated under."""
    if cost is None or batch is None:
        return [None] * len(evaluations)
    return [cost.predict(of.placement, batch, of.dispatch) for of in evaluations]


def headings(cost: "StepCost | None") -> tuple[str, ...]:
    """The heading of a column of steps."""
    return () if cost is None else ("step ms",)


def cells(step_s: float | None) -> tuple[output.Cell, ...]:
    """The cell of a column of steps."""
    return () if step_s is None else (f"{1e3 * step_s:.2f}",)


def seconds_of(step: "PredictedStep | None") -> float | None:
    """Seconds of all MoE layers."""
    return None if step is None else step.step_s


def facts(step: "PredictedStep | None") -> list[tuple[str, output.Cell]]:
    """The milliseconds of a step by part, one a line."""
    if step is None:
        return []
    summary = step.summary()
    return [(label, f"{summary[f'predicted_{part}_ms']:.2f}") for part, label in _LABELS.items()]


def fields(step: "PredictedStep | None") -> dict[str, float]:
    """The milliseconds of a step by part, for `--json`."""
    return {} if step is None else step.summary()


def in_title(cost: "StepCost | None") -> str:
    """What a table with predicted steps has in its title: the GPU, and whether it was measured."""
    return "" if cost is None else f"; step on {cost.calibration.title}"


def table(cost: "StepCost | None", heading: str, steps: "Sequence[tuple[str, float, PredictedStep | None]]") -> None:
    """Print balance and milliseconds by part, a row for each (name, max/mean, step)."""
    if cost is None:
        return
    rows = [(name, balance, *(value for _, value in facts(step))) for name, balance, step in steps]
    title = f"Predicted ms of a step, {cost.title}"
    headings = (heading, "max/mean", "step ms", "dispatch", "FFN", "waiting", "combine")
    output.table(title, headings, rows, legend=_LEGEND)


def note(cost: "StepCost | None", choices: str) -> None:
    """Say below a table what the milliseconds are of."""
    if cost is None:
        return
    layers = output.counted(cost.model.num_moe_layers, "MoE layer")
    output.note(f"step ms: predicted, {layers} of {cost.title}; choices {choices}")
    for sentence in cost.caveats:
        output.note(f"  {sentence}")


def head(cost: "StepCost | None", choices: str) -> dict[str, object]:
    """What the milliseconds are of, for `--json`."""
    return {} if cost is None else {"prediction": {**cost.summary(), "choices": choices}}


def choices_sampled(cost: "StepCost | None", load: "ExpertLoad") -> str:
    """Where choices come from that are sampled from a load."""
    return "" if cost is None else cost.sampled_from(load)


def choices_of(cost: "StepCost | None", batch: "StepBatch | None") -> str:
    """Where the choices of a batch come from."""
    return "" if cost is None or batch is None else f"{batch.origin}{cost.scaling(len(batch.layers))}"
