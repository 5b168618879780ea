"""`for_engine`: reads a plan for one rank of an engine and refuses a plan of another model or topology."""

from pathlib import Path

from eplb.core.counts import check_count
from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.engines.rank_layout import RankLayout
from eplb.errors import FormatError, InputError
from eplb.formats import NO_HINTS, ReadHints, RecordStatus, parse_file
from eplb.formats.sidecar import sidecar_path
from eplb_traces import ModelShape
from eplb_traces.model_shape import ShapeConflictError, merge_shapes


def for_engine(
    plan_or_path: Plan | Placement | str | Path,
    *,
    ep_size: int,
    ep_rank: int,
    model_shape: ModelShape | None = None,
    digest: str | None = None,
) -> RankLayout:
    """What a rank of an engine needs when it starts.

    Parameters
    ----------
    plan_or_path
        A plan, a placement, or a file of any format.
    ep_size, ep_rank
        Ranks of the engine's expert-parallel group, and this one.
    model_shape
        The model that the engine runs, with the absolute ids of its MoE layers if it has dense ones; what the plan does
        not hold is taken from it. None to take the plan's.
    digest
        `RankLayout.digest` of another rank; None not to compare.

    Returns
    -------
    RankLayout
        Checked; what it holds is derived on demand.

    Raises
    ------
    InputError
        If the plan is for another model, another number of ranks or not the one with the digest, if a file's record
        is of another map, or if there is no such rank. FormatError for a file that is no placement.

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)
    >>> layout = eplb.for_engine(eplb.plan([[9.0, 3.0, 2.0, 2.0]], topology), ep_size=2, ep_rank=1)
    >>> layout
    RankLayout(rank 1 of 2, 1 layer)
    """
    check_count("ep_size", ep_size)
    place, plan = _find_plan(plan_or_path, ep_size, model_shape)
    num_ranks = plan.placement.topology.num_ranks
    if num_ranks != ep_size:
        raise InputError(
            f"{place} is for {num_ranks} ranks: the engine runs ep_size = {ep_size}, expected a plan for it"
        )
    if not 0 <= ep_rank < ep_size:
        raise InputError(f"ep_rank = {ep_rank}: expected 0 <= ep_rank < ep_size = {ep_size}")
    shape = plan.shape if model_shape is None else _joined(plan.shape, model_shape, place)
    layout = RankLayout(plan.placement, shape, ep_rank)
    if digest is not None and layout.digest != digest:
        raise InputError(f"{place} has the digest {layout.digest}: expected {digest}, as another rank has it")
    return layout


def _find_plan(given: Plan | Placement | str | Path, ep_size: int, model_shape: ModelShape | None) -> tuple[str, Plan]:
    """What to call the plan in messages, and the plan."""
    if isinstance(given, Plan):
        return "the plan", given
    if isinstance(given, Placement):
        return "the placement", Plan(given, ModelShape(given.num_layers, given.num_experts), "given")
    path = Path(given)
    return str(path), _read(path, ReadHints(num_ranks=ep_size, shape=model_shape))


def _read(path: Path, engine_hints: ReadHints) -> Plan:
    """The plan of the file alone, or, for a file that needs hints, with the engine's.

    Without hints first: what the file holds is to be compared with the engine's model, not replaced by it.
    """
    parsed = parse_file(path)
    if parsed.record_status is RecordStatus.STALE:
        raise InputError(
            f"{path}: its record {sidecar_path(path).name} is about another map, so one of the two files was changed: "
            "write the plan again, or remove the record if the map is meant"
        )
    try:
        return parsed.plan(NO_HINTS)
    except FormatError as error:
        try:
            return parsed.plan(engine_hints)
        except FormatError as error_with_hints:
            raise error_with_hints from error


def _joined(planned: ModelShape, model: ModelShape, place: str) -> ModelShape:
    """The engine's model with what only the plan tells of it."""
    try:
        return merge_shapes(model, planned)
    except ShapeConflictError as error:
        raise InputError(
            f"{place} is for another model: {error.name} = {error.second}, the engine's model has {error.first}"
        ) from error
