"""`eplb.read_placement` and `eplb.write_placement`: placements in files of any format."""

from dataclasses import replace
from pathlib import Path

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.formats import ReadHints, read_plan, write_plan
from eplb_traces import ModelShape


def read_placement(
    path: str | Path,
    format: str | None = None,
    topology: Topology | None = None,
    shape: ModelShape | None = None,
) -> Placement:
    """The placement in a file of any format; `eplb.formats.read_plan` gives the whole plan.

    Parameters
    ----------
    path
        The file.
    format
        Name of its format; found by suffix and content when None.
    topology
        The topology, for files that do not hold it.
    shape
        The model, for files that number layers differently or not at all.

    Raises
    ------
    FormatError
        For a file that is not in its format, or contradicts `topology` or `shape`.
    """
    return read_plan(path, format, ReadHints(topology=topology, shape=shape)).placement


def write_placement(
    plan: Plan | Placement, path: str | Path, format: str = "native", shape: ModelShape | None = None
) -> None:
    """Write a plan, or a bare placement without provenance, in any format; see `eplb.formats.write_plan`.

    Parameters
    ----------
    plan
        What to write.
    path
        The file; it appears whole or not at all.
    format
        Name of the format.
    shape
        The model, with its absolute layer ids for formats that want them; the plan's own when None.

    Raises
    ------
    FormatError
        If the format or its engine cannot hold the placement.
    InputError
        If the path cannot be written, or `plan` is of another type.
    """
    if isinstance(plan, Placement):
        shape = ModelShape(plan.num_layers, plan.num_experts) if shape is None else shape
        plan = Plan(plan, shape, "given")
    elif not isinstance(plan, Plan):
        raise InputError(f"plan is of type {type(plan).__name__}: expected a Plan or a Placement")
    elif shape is not None:
        plan = replace(plan, shape=shape)
    write_plan(plan, path, format)
