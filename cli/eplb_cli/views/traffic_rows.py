"""Makes the table and the JSON fields of `eplb evaluate --traffic`: copies and bytes by rank, node and link."""

from typing import TYPE_CHECKING

from eplb_cli import output

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.evaluation.traffic import Traffic
    from eplb_traces import RoutingTrace

_HEADINGS = ("replicas by", "sent", "inter-node", "intra-node", "busiest link", "copies")
_LEGEND = """\
inter-node, intra-node: copies a token and layer that cross a link of that kind, dispatch; combine sends them back
copies: of the busiest link, over bandwidth, in the whole trace; min_cover: replicas chosen for few nodes, then ranks"""


def traffic_of(placement: "Placement", trace: "RoutingTrace", dispatch: str) -> "list[Traffic]":
    """The copies under the dispatch rule, and with replicas chosen to visit few nodes."""
    from eplb.evaluation.traffic import covering_traffic, expected_traffic

    return [expected_traffic(placement, trace, dispatch), covering_traffic(placement, trace)]


def as_object(traffics: "list[Traffic]", token_bytes: float | None) -> list[dict[str, object]]:
    """Fields of every way to choose replicas: visits, matrices, and the links by transfer and direction."""
    from eplb.evaluation.link_traffic import Transfer, link_traffic

    found = []
    for traffic in traffics:
        links = {str(transfer): link_traffic(traffic, transfer) for transfer in Transfer}
        found.append(
            {
                "replicas_by": traffic.rule,
                "sources": "trace" if traffic.known_sources else "uniform",
                "ranks_per_token": float(traffic.spread.ranks_per_token.mean()),
                "nodes_per_token": float(traffic.spread.nodes_per_token.mean()),
                "rank_matrix": traffic.rank_matrix.tolist(),
                "node_matrix": traffic.node_matrix.tolist(),
                "dispatch": {name: of.summary(token_bytes) for name, of in links.items()},
                "combine": {name: of.reversed.summary(token_bytes) for name, of in links.items()},
            }
        )
    return found


def show(traffics: "list[Traffic]", token_bytes: float | None) -> None:
    """Print one row for every way to choose replicas and to send tokens."""
    from eplb.evaluation.link_traffic import Transfer, link_traffic

    rows: list[tuple[output.Cell, ...]] = []
    for traffic in traffics:
        for transfer in Transfer:
            links = link_traffic(traffic, transfer)
            per = 1 / links.num_token_layers
            sender, receiver = links.busiest_link
            row: tuple[output.Cell, ...] = (
                traffic.rule,
                str(transfer),
                float(links.between_nodes.sum() * per),
                float(links.inside_nodes.sum() * per),
                f"{sender} to {receiver}",
                f"{links.copies[sender, receiver]:.0f}",
            )
            rows.append(row if token_bytes is None else (*row, f"{links.seconds(token_bytes) * 1e3:.2f}"))
    sources = "of the trace" if traffics[0].known_sources else "unknown: all ranks alike"
    headings = _HEADINGS if token_bytes is None else (*_HEADINGS, "ms")
    legend = _LEGEND if token_bytes is None else f"{_LEGEND}\nms: dispatch of the whole trace at link bandwidth"
    output.table(f"traffic; source ranks {sources}", headings, rows, legend=legend, num_keys=2)
