"""Makes the topology of a plan from options of the command line, or from a MindIE configuration."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eplb_cli.arguments.parse import Nodes

if TYPE_CHECKING:
    from eplb.core.topology import Topology


def topology_from_options(
    num_experts: int,
    *,
    ranks: int | None,
    nodes: Nodes | None,
    redundant: int | None,
    mindie_config: Path | None = None,
) -> "Topology":
    """The topology for a model of so many experts; options may repeat the configuration, not contradict it.

    Raises
    ------
    typer.BadParameter
        Without ranks and without a configuration.
    """
    from eplb.core.topology import Topology
    from eplb.formats.engine_file import merge
    from eplb.formats.mindie_config import read_mindie_config

    if mindie_config is None:
        if ranks is None and isinstance(nodes, tuple):
            ranks = sum(nodes)
        if ranks is None:
            raise typer.BadParameter("needed, unless --previous or --mindie-config gives it", param_hint="--ranks")
        return Topology.for_experts(
            num_experts,
            num_ranks=ranks,
            num_nodes=1 if nodes is None else nodes,
            num_redundant=0 if redundant is None else redundant,
        )
    config = read_mindie_config(mindie_config)
    merge("moe_ep", config.layout.moe_ep, ranks, mindie_config)
    num_redundant = merge("num_redundant_experts", config.num_redundant_experts or None, redundant, mindie_config)
    topology = config.topology(num_experts, num_redundant or 0)
    merge("nodes", topology.nodes, nodes, mindie_config)
    return topology
