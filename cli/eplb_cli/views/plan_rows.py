"""Shows a plan as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from eplb_cli import output
from eplb_cli.views.metric_rows import metric_facts, window_objects, window_table
from eplb_cli.views.migration_rows import migration_facts
from eplb_cli.views.topology_rows import nodes_text

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.evaluation.metrics import Evaluation


def show(made: "Plan", evaluation: "Evaluation", of_engine: "Sequence[tuple[str, output.Cell]]" = ()) -> None:
    """Print a plan for people; `of_engine` are more rows of the engine that will run it."""
    topology = made.placement.topology
    bounds = Counter(layer.binding_bound.value for layer in made.layers)
    ranks, nodes = output.counted(topology.num_ranks, "rank"), nodes_text(topology)
    layers = output.counted(made.placement.num_layers, "layer")
    output.facts(
        f"{layers} of {made.placement.num_experts} experts in {topology.num_slots} slots on {ranks} of {nodes}",
        [
            ("strategy", f"{made.strategy} ({made.status.value})"),
            ("dispatch", evaluation.dispatch.value),
            *of_engine,
            *metric_facts(evaluation.summary()),
            ("what bounds the layers", ", ".join(f"{name}: {count}" for name, count in sorted(bounds.items()))),
            ("planned in", f"{output.milliseconds(made.seconds)} ms"),
        ],
    )
    if made.migration is not None:
        output.facts("To get there", migration_facts(made.migration))
    show_step_times(made)
    for text in made.notes:
        output.line(f"note: {text}")
    window_table(evaluation)


def show_step_times(made: "Plan") -> None:
    """Print the step times of a plan made for a phase; nothing for other plans."""
    if made.step_prediction is None:
        return
    output.table(
        f"Expert FFN of the slowest rank: {made.step_prediction.title}",
        ("", "slots", "without tokens", "ms"),
        [
            (step.name, step.num_slots, f"{step.num_cold:.1f}", f"{1e3 * step.seconds:.3f}")
            for step in made.step_prediction.steps
        ],
    )


def step_times_object(made: "Plan") -> dict[str, object]:
    """The step times of a plan made for a phase, for `--json`; nothing for other plans."""
    return {} if made.step_prediction is None else {"step_prediction": asdict(made.step_prediction)}


def as_object(made: "Plan", evaluation: "Evaluation") -> dict[str, object]:
    """A plan for `--json`."""
    return {
        "strategy": made.strategy,
        "status": made.status.value,
        "seconds": made.seconds,
        "seed": made.seed,
        "dispatch": evaluation.dispatch.value,
        **evaluation.summary(),
        **({} if made.migration is None else made.migration.summary()),
        **step_times_object(made),
        "notes": list(made.notes),
        "windows": window_objects(evaluation),
        "layers": [
            {
                "objective": layer.objective,
                "lower_bound": layer.lower_bound,
                "binding_bound": layer.binding_bound.value,
                "gap": layer.gap,
                "status": layer.status.value,
            }
            for layer in made.layers
        ],
    }
