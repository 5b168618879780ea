"""Shows a plan as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
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
    for text in made.notes:
        output.line(f"note: {text}")
    window_table(evaluation)


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
