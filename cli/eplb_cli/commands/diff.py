"""`eplb diff`: what has to move from one placement to another."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import options
from eplb_cli.arguments.kind_of_file import expecting_placement
from eplb_cli.arguments.parse import Nodes, id_list, rank_pairs
from eplb_cli.arguments.plan_options import LostRanksOpt, RankMapOpt
from eplb_cli.views.migration_rows import layer_objects, layer_table, migration_facts
from eplb_cli.views.topology_rows import topology_object, topology_text

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.core.topology_change import TopologyChange
    from eplb.formats import ReadHints


def diff(  # noqa: PLR0913  # one parameter a word of the command line
    old_path: Annotated[
        Path, typer.Argument(metavar="OLD", help="The live placement; - is stdin.", show_default=False)
    ],
    new_path: Annotated[
        Path, typer.Argument(metavar="NEW", help="The placement to come; - is stdin.", show_default=False)
    ],
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    experts: options.ExpertsOpt = None,
    expert_bytes: options.ExpertBytesOpt = None,
    lost_ranks: LostRanksOpt = None,
    rank_map: RankMapOpt = None,
    as_csv: options.CsvOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Show which replicas move where from OLD to NEW, placement files of any dialect for one model."""
    from eplb.core.expert_bytes import known_expert_bytes
    from eplb.planning.replan_on import change_notes, migration_between

    old, new = _read(old_path, new_path, ranks, nodes, experts)
    change = _change(old, new, lost_ranks, rank_map)
    size = known_expert_bytes(expert_bytes, new.shape, old.shape)
    moved = migration_between(old.placement, new.placement, change, size)
    if as_csv:
        output.csv_rows(layer_objects(moved.migration))
        return
    if as_json:
        output.json_object(
            {
                "old": topology_object(change.before),
                "new": topology_object(change.after),
                **moved.migration.summary(),
                "loaded_experts": moved.num_loaded,
                "layers": layer_objects(moved.migration),
            }
        )
        return
    facts = [("from", topology_text(change.before)), ("to", topology_text(change.after))]
    if moved.num_loaded:
        facts.append(("lost experts loaded from the checkpoint", str(moved.num_loaded)))
    title = f"{old_path.name} ({old.strategy}) to {new_path.name} ({new.strategy})"
    output.facts(title, [*facts, *migration_facts(moved.migration)])
    if change.before != change.after:
        for sentence in change_notes(change):
            output.line(f"note: {sentence}")
    layer_table(moved.migration)


def _change(old: "Plan", new: "Plan", lost: str | None, pairs: str | None) -> "TopologyChange":
    """Which rank of the old plan is which of the new one."""
    from eplb.planning.changed_topology import change_between, ranks_of

    return change_between(
        ranks_of(old),
        ranks_of(new),
        pairs=None if pairs is None else rank_pairs(pairs, "--rank-map"),
        lost=() if lost is None else id_list(lost, "--lost-ranks"),
    )


def _read(
    old_path: Path, new_path: Path, ranks: int | None, nodes: Nodes | None, experts: int | None
) -> tuple["Plan", "Plan"]:
    """Both plans; what an engine's file does not hold is taken from the options, then from the other file."""
    from eplb.formats import ReadHints, RecordStatus, parse_file

    hints = ReadHints(num_ranks=ranks, num_nodes=nodes, num_experts=experts)
    with expecting_placement(old_path, new_path):
        old, new = parse_file(old_path), parse_file(new_path)
    with_record = (RecordStatus.IN_FILE, RecordStatus.IN_SIDECAR)
    if new.record_status in with_record:
        read = new.plan(hints)
        return old.plan(hints if old.record_status in with_record else _as(read, hints)), read
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
