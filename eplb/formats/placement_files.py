"""Reads, writes, converts and checks placement files of any format: the public calls."""

from dataclasses import replace
from pathlib import Path

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.formats import ReadHints, read_plan, write_plan
from eplb.formats.engine_check import EngineReport, check_file
from eplb_traces import ModelShape
from eplb_traces.errors import naming_place
from eplb_traces.model_shape import merge_shapes


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

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=2)
    >>> plan = eplb.plan([[9.0, 3.0, 2.0, 2.0]], topology)
    >>> eplb.write_placement(plan, "plan.json")
    >>> eplb.read_placement("plan.json") == plan.placement
    True
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

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=2)
    >>> eplb.write_placement(eplb.Placement([[0, 1, 2, 3]], 4, topology), "plan.json")
    >>> eplb.read_placement("plan.json")
    Placement(1 layers, 4 experts in 4 slots on 2 ranks)
    """
    if isinstance(plan, Placement):
        shape = ModelShape(plan.num_layers, plan.num_experts) if shape is None else shape
        plan = Plan(plan, shape, "given")
    elif not isinstance(plan, Plan):
        raise InputError(f"plan is of type {type(plan).__name__}: expected a Plan or a Placement")
    elif shape is not None:
        plan = replace(plan, shape=shape)
    write_plan(plan, path, format)


def convert(  # noqa: PLR0913  # what read_placement takes, and what to write
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    format: str | None = None,
    topology: Topology | None = None,
    shape: ModelShape | None = None,
) -> Plan:
    """Rewrite a placement file in another format.

    Parameters
    ----------
    source, target
        The file that is read and the one that is written.
    to
        Name of the format to write.
    format, topology, shape
        As in `read_placement`; `shape` also adds the layer ids that the format to write may need.

    Returns
    -------
    Plan
        What was written.

    Raises
    ------
    FormatError
        As `read_placement` and `write_placement` do.

    Examples
    --------
    >>> import eplb
    >>> plan = eplb.plan("sample:moe-435m-windows", eplb.Topology.for_experts(256, num_ranks=32), "linear")
    >>> eplb.write_placement(plan, "plan.json")
    >>> eplb.convert("plan.json", "sglang.json", to="sglang")
    Plan(linear, 8 layers of 256 experts on 32 ranks, 24.72 % above the bound at worst)
    """
    with naming_place(source):
        plan = read_plan(source, format, ReadHints(topology=topology, shape=shape))
        if shape is not None:
            plan = replace(plan, shape=merge_shapes(plan.shape, shape))
    write_plan(plan, target, to)
    return plan


def check(
    path: str | Path,
    engine: str,
    num_ranks: int,
    *,
    num_experts: int | None = None,
    shape: ModelShape | None = None,
) -> EngineReport:
    """Check a placement file against an engine's loader; parameters and errors as in `engine_check.check_file`.

    Returns
    -------
    EngineReport
        What the engine would load; a file on which it would crash, or which it would misread, is a FormatError.

    Examples
    --------
    >>> import eplb
    >>> plan = eplb.plan("sample:moe-435m-windows", eplb.Topology.for_experts(256, num_ranks=32), "linear")
    >>> eplb.write_placement(plan, "plan.json", "sglang")
    >>> print(eplb.check("plan.json", "sglang", num_ranks=32, num_experts=256))
    sglang would load it: 9 layers, 256 experts + 0 redundant = 256 slots on 32 ranks of 8, 0 duplicates on a rank
    note: 9 rows: expected one for each layer of the model, dense ones counted
    """
    return check_file(path, engine, num_ranks, num_experts, shape)
