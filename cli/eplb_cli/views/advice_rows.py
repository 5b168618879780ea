"""Makes the table, sentences and JSON fields of `eplb advise`."""

from typing import TYPE_CHECKING

from eplb_cli import output
from eplb_cli.views import cost_rows

if TYPE_CHECKING:
    from eplb.planning.advice import Advice, Deployment

_HEADINGS = ("EP", "nodes", "redun.", "placement", "dispatch", "max/mean", "step ms", "tok/s", "GB", "left", "")
_LEGEND = """\
step ms: predicted, MoE layers alone; tok/s: tokens/s per GPU in such steps
GB: routed experts of a GPU; left: GB of a GPU for KV cache and activations
*: recommended; memory: less than the reserve is left; slow: the MoE layers alone miss the SLO"""


def show(advice: "Advice", title: str, *, every_row: bool) -> None:
    """Print the rows and what is recommended."""
    rows = advice.deployments if every_row else advice.best_of_each_size
    recommended = advice.recommended
    if recommended is not None and recommended not in rows:
        rows = tuple(row for row in advice.deployments if row in rows or row is recommended)
    table = [_row(row, is_recommended=row is recommended) for row in rows]
    output.table(f"{title}: {advice.cost.title}", _HEADINGS, table, legend=_LEGEND, num_keys=2)
    output.line(f"recommended: {advice.reason}" if recommended is not None else advice.reason)
    if len(rows) < len(advice.deployments):
        output.note(
            f"{len(rows)} of {len(advice.deployments)} deployments: the fastest of each size; --all for every one"
        )
    memory = advice.memory
    rest = f"{output.byte_size(memory.rest_bytes)} ({memory.rest_origin})"
    reserve = output.byte_size(memory.reserve_bytes)
    output.note(f"memory: {output.byte_size(memory.total_bytes)} a GPU, rest of the model {rest}, reserve {reserve}")
    cost_rows.note(advice.cost, advice.choices)


def _row(row: "Deployment", *, is_recommended: bool) -> tuple[output.Cell, ...]:
    marks = [("*", is_recommended), ("memory", not row.fits), ("slow", not row.meets_slo)]
    return (
        row.num_ranks,
        row.num_nodes,
        row.num_redundant,
        row.strategy,
        row.rule.value,
        f"{row.max_over_mean:.3f}",
        *cost_rows.cells(row.step.step_s),
        f"{row.tokens_per_s:.0f}",
        f"{row.expert_bytes / 1e9:.1f}",
        f"{row.left_bytes / 1e9:.1f}",
        " ".join(mark for mark, holds in marks if holds),
    )


def as_object(advice: "Advice") -> dict[str, object]:
    """Everything, for `--json`."""
    memory, recommended = advice.memory, advice.recommended
    return {
        **cost_rows.head(advice.cost, advice.choices),
        "memory": {
            "total_bytes": memory.total_bytes,
            "rest_bytes": memory.rest_bytes,
            "rest_origin": memory.rest_origin,
            "reserve_bytes": memory.reserve_bytes,
        },
        "slo_ms": None if advice.slo_s is None else 1e3 * advice.slo_s,
        "deployments": [row.summary() for row in advice.deployments],
        "knee_num_ranks": advice.knee,
        "recommended": None if recommended is None else recommended.summary(),
        "reason": advice.reason,
    }
