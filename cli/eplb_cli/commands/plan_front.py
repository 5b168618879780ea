"""`eplb plan --strategy traffic --pareto`: rank load against nodes a token, for several load caps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.planning.traffic_front import FrontPoint

_DRAWINGS: Final = (".png", ".svg", ".pdf")
_HEADINGS: Final = ("load cap", "max/mean", "nodes", "ranks", "held out: max/mean", "nodes", "ranks")


def check_front(out: Path | None, *, has_trace: bool) -> None:
    """Refuse a front without a trace, and a drawing of an unknown format."""
    if not has_trace:
        raise typer.BadParameter("needs --trace", param_hint="--pareto")
    if out is not None and out.suffix.lower() not in _DRAWINGS:
        raise typer.BadParameter(
            f"{out}: with --pareto, expected a name that ends in {', '.join(_DRAWINGS)}", param_hint="--output"
        )


def show_front(points: "Sequence[FrontPoint]", out: Path | None, *, as_json: bool) -> None:
    """Draw the front, if requested, then print it."""
    if out is not None:
        from eplb.report.pictures import draw_traffic_front
        from eplb.report.style import save

        save(draw_traffic_front(points), out)
    if as_json:
        written = None if out is None else {"path": str(out)}
        output.json_object({"points": [_as_object(point) for point in points], "written": written})
        return
    output.table("load cap against nodes and ranks a token, means of layers", _HEADINGS, [_row(p) for p in points])
    if out is not None:
        output.line(f"wrote {out}")


def _as_object(point: "FrontPoint") -> dict[str, object]:
    from dataclasses import asdict

    return {
        "strategy": point.plan.strategy,
        "load_cap": point.load_cap,
        "max_over_mean": point.max_over_mean,
        "nodes_per_token": point.nodes_per_token,
        "ranks_per_token": point.ranks_per_token,
        "held_out": None if point.held_out is None else asdict(point.held_out),
        "notes": list(point.plan.notes),
    }


def _row(point: "FrontPoint") -> tuple[output.Cell, ...]:
    held = point.held_out
    later: tuple[output.Cell, ...] = (
        ("-", "-", "-") if held is None else (held.max_over_mean, held.nodes_per_token, held.ranks_per_token)
    )
    name = "greedy" if point.load_cap is None else f"{point.load_cap:g}"
    return (name, point.max_over_mean, point.nodes_per_token, point.ranks_per_token, *later)
