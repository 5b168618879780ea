"""Reads the placements of `--plan`, by name, and checks that they are for the same ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eplb_cli import output
from eplb_cli.arguments import files

if TYPE_CHECKING:
    from eplb.core.problem import Plan
    from eplb.core.topology import Topology
    from eplb.formats import ReadHints
    from eplb_traces import ExpertLoad, RoutingTrace


def read_plans(
    source: "ExpertLoad | RoutingTrace", paths: Sequence[Path], dialect: str | None, hints: "ReadHints"
) -> "dict[str, Plan]":
    """{name: plan} in the order given, named as by `files.names_of`.

    Raises
    ------
    typer.BadParameter
        For a file that is given twice.
    InputError
        For a file that cannot be read or is for another model than `source`; names the file.
    """
    twice = next((path for number, path in enumerate(paths) if path in paths[:number]), None)
    if twice is not None:
        raise typer.BadParameter(f"{twice}: given twice", param_hint="--plan")
    names = files.names_of(paths)
    plans = {name: files.read_plan_for(source, path, dialect, hints) for name, path in zip(names, paths, strict=True)}
    for name, plan in plans.items():
        plan.placement.check_model(source.shape, name=f"plan {name}")
    return plans


def common_topology(plans: "Mapping[str, Plan]") -> "Topology":
    """The topology of the first plan, which all have; bandwidths may differ, since balance does not depend on them.

    Raises
    ------
    InputError
        For a plan with other ranks, nodes, slots or speeds than the first one; names both.
    """
    from eplb.errors import InputError

    (first_name, first), *others = plans.items()
    expected = first.placement.topology
    for name, plan in others:
        found = plan.placement.topology
        if _shape(found) != _shape(expected):
            raise InputError(
                f"plan {name} is for {_described(found)}: expected {_described(expected)}, as plan {first_name} has"
            )
    return expected


def _shape(topology: "Topology") -> tuple[object, ...]:
    speed = topology.rank_speed
    nodes, slots = topology.node_num_ranks.tolist(), topology.rank_num_slots.tolist()
    return nodes, slots, None if speed is None else tuple(speed)


def _described(topology: "Topology") -> str:
    from eplb_cli.views.topology_rows import topology_text

    slots = f"{topology_text(topology)}, {output.counted(topology.num_slots, 'slot')}"
    return slots if topology.rank_speed is None else f"{slots}, speeds {list(topology.rank_speed)}"
