"""`eplb.write_report`: gathers and writes a report, as a folder or as one page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from eplb.arguments.accepted import LoadLike, PlacementLike, accepted_load, accepted_placement
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.report.contents import DEFAULT_STRATEGY, ReportContents, gather
from eplb.report.folder import FolderOptions, write_folder
from eplb.report.html import write_page
from eplb.strategies import StrategyLike
from eplb_traces import ExpertLoad, RoutingTrace

PAGE_SUFFIXES: Final = (".html", ".htm")


def write_report(  # noqa: PLR0913  # the public call: everything a report depends on
    source: LoadLike,
    out: str | Path,
    plans: Mapping[str, PlacementLike] | None = None,
    topology: Topology | None = None,
    *,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    window: int | None = None,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    title: str | None = None,
    expert_bytes: float | None = None,
    options: FolderOptions | None = None,
) -> ReportContents:
    """Show what the router did and what plans make of it, as pictures, tables and words.

    Parameters
    ----------
    source
        The recorded load or trace, in any form that `plan` takes; token-level traces are shown as such.
    out
        One interactive page if the name ends in .html, else a folder for pictures, tables and summary.md.
    plans, topology, strategy, window, dispatch, sources, expert_bytes
        As in `eplb.report.gather`; plans may be the paths of files.
    title
        Source of the load, shown in the report; the name of its file by default.
    options
        Layers and image format of a folder; refused for a page, which shows every layer.

    Returns
    -------
    ReportContents
        What the report shows.

    Raises
    ------
    InputError
        As `eplb.report.gather` and the writers do.
    MissingExtraError
        Without matplotlib and pandas for a folder.

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology.for_experts(256, num_ranks=32, num_redundant=32)
    >>> eplb.write_report("sample:moe-435m-windows", "report.html", topology=topology)
    ReportContents(sample:moe-435m-windows: experts in order, greedy)
    """
    path = Path(out)
    is_page = path.suffix.lower() in PAGE_SUFFIXES
    if is_page and options is not None:
        raise InputError(f"options = {options}: expected none for {path.name}, a page shows every layer")
    content = _content(source)
    contents = gather(
        content,
        {name: accepted_placement(one, content.shape, f"plan {name}") for name, one in (plans or {}).items()},
        topology,
        strategy=strategy,
        window=window,
        dispatch=dispatch,
        sources=sources,
        title=_title(source) if title is None else title,
        expert_bytes=expert_bytes,
    )
    if is_page:
        write_page(contents, path)
    else:
        write_folder(contents, path, FolderOptions() if options is None else options)
    return contents


def _content(source: LoadLike) -> ExpertLoad | RoutingTrace:
    """The trace or load of a file, a trace as it is, or what `accepted_load` makes of everything else."""
    if isinstance(source, str | os.PathLike):
        from eplb_traces.readers import read

        return read(Path(source)).content
    return source if isinstance(source, RoutingTrace) else accepted_load(source, "source")


def _title(source: LoadLike) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else "load"
