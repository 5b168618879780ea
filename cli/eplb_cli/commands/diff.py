"""`eplb diff`: what has to move from one placement to another."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import options
from eplb_cli.arguments.parse import Nodes
from eplb_cli.views.migration_rows import layer_objects, layer_table, migration_facts

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.formats import ReadHints


def diff(  # noqa: PLR0913  # one parameter a word of the command line
    old_path: Annotated[Path, typer.Argument(metavar="OLD", help="The live placement.", show_default=False)],
    new_path: Annotated[Path, typer.Argument(metavar="NEW", help="The placement to come.", show_default=False)],
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    experts: options.ExpertsOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Show which replicas move where from OLD to NEW, placement files of any dialect for one topology and model."""
    from eplb.core.migration import DEEPSEEK_V3_EXPERT_BYTES, Migration

    old, new = _read(old_path, new_path, ranks, nodes, experts)
    size = DEEPSEEK_V3_EXPERT_BYTES if expert_bytes is None else expert_bytes
    migration = Migration.between(old.placement, new.placement, size)
    if as_json:
        output.json_object({**migration.summary(), "layers": layer_objects(migration)})
        return
    output.facts(f"{old_path.name} ({old.strategy}) to {new_path.name} ({new.strategy})", migration_facts(migration))
    layer_table(migration)


def _read(
    old_path: Path, new_path: Path, ranks: int | None, nodes: Nodes | None, experts: int | None
) -> tuple["Plan", "Plan"]:
    """Both plans; what an engine's file does not hold is taken from the options, then from the other file."""
    from eplb.formats import ReadHints, RecordStatus, parse_file

    hints = ReadHints(num_ranks=ranks, num_nodes=nodes, num_experts=experts)
    old, new = parse_file(old_path), parse_file(new_path)
    if new.record_status is RecordStatus.IN_FILE:
        read = new.plan(hints)
        return old.plan(hints if old.record_status is RecordStatus.IN_FILE else _as(read, hints)), read
    read = old.plan(hints)
    return read, new.plan(_as(read, hints))


def _as(other: "Plan", hints: "ReadHints") -> "ReadHints":
    """The hints, and what another file for the same topology and model holds."""
    topology = other.placement.topology
    return replace(
        hints,
        num_ranks=topology.num_ranks if hints.num_ranks is None else hints.num_ranks,
        num_nodes=topology.nodes if hints.num_nodes is None else hints.num_nodes,
        shape=other.shape,
    )
