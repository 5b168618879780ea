"""Shows a topology as text and as JSON."""

from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.core.topology import Topology


def nodes_text(topology: "Topology") -> str:
    """The nodes, with the ranks of each where they differ."""
    nodes = output.counted(topology.num_nodes, "node")
    return nodes if topology.has_equal_nodes else f"{nodes} ({', '.join(map(str, topology.node_num_ranks.tolist()))})"


def topology_text(topology: "Topology") -> str:
    """Ranks, nodes and slots."""
    ranks = f"{output.counted(topology.num_ranks, 'rank')} of {nodes_text(topology)}"
    slots = set(topology.rank_num_slots.tolist())
    each = f"{min(slots)}" if len(slots) == 1 else f"{min(slots)} to {max(slots)}"
    return f"{ranks}, {each} slots a rank"


def topology_object(topology: "Topology") -> dict[str, object]:
    """Ranks, nodes and slots for `--json`."""
    return {
        "num_ranks": topology.num_ranks,
        "ranks_by_node": topology.node_num_ranks.tolist(),
        "slots_by_rank": topology.rank_num_slots.tolist(),
    }


def note_ignored_weights(placement: "Placement", rule: str) -> None:
    """Tell the user that the rule splits tokens by other shares than those of the placement."""
    from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule

    if placement.replica_weights is not None and DispatchRule.named(rule) in EVEN_RULES:
        output.note(f"note: {rule} dispatch ignores the replica weights of the plan: --dispatch weighted uses them")
