"""Makes the hard constraints of the command line. The file is TOML with the keys of `core.constraints.Constraints`.

::

    pin = [[3, 0]]  # [expert, rank]: a replica of the expert is on the rank
    forbid = [[5, 2], [5, 3]]  # [expert, rank]: no replica of it is there
    apart = [[0, 1, 2]]  # a rank holds at most one of these experts
    together = [[8, 9]]  # a rank holds all of these experts or none
    replica_counts = [2, 1, 1]  # replicas of each expert
    replicate_everywhere = [256]  # experts with a replica on every rank
    replicated_slot = "last"  # or "first": the slots of a rank that hold these
    expert_bytes = 44040192  # bytes of one replica: one number, "42MiB", or one for each expert
    rank_bytes = "400MB"  # room of a rank for one layer: one number, or one for each rank
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eplb_cli.arguments.parse import byte_count, id_list
from eplb_cli.arguments.toml_file import read_toml

if TYPE_CHECKING:
    from eplb.core.constraints import Constraints


def constraints_of(path: Path | None, everywhere: str | None, slot: str | None, engine: str | None) -> "Constraints":
    """The constraints of --constraints, --replicate-everywhere and --replicated-slot.

    Raises
    ------
    typer.BadParameter
        For experts that are replicated everywhere by the file and the option, --replicated-slot without
        --replicate-everywhere, or the first slot for vllm-ascend, which has its shared experts in the last ones.
    FormatError
        As `read_constraints`.
    """
    from eplb.core.constraints import Constraints, ReplicatedSlot

    found = Constraints() if path is None else read_constraints(path)
    if everywhere is None:
        if slot is not None:
            raise typer.BadParameter("has no effect without --replicate-everywhere", param_hint="--replicated-slot")
    elif found.replicate_everywhere:
        raise typer.BadParameter(f"{path} has replicate_everywhere too", param_hint="--replicate-everywhere")
    else:
        found = dataclasses.replace(
            found,
            replicate_everywhere=id_list(everywhere, "--replicate-everywhere"),
            replicated_slot=found.replicated_slot if slot is None else ReplicatedSlot.named(slot),
        )
    if engine == "ascend" and found.replicate_everywhere and found.replicated_slot is not ReplicatedSlot.LAST:
        raise typer.BadParameter("first: vllm-ascend expects last for shared experts", param_hint="--replicated-slot")
    return found


def read_constraints(path: Path) -> "Constraints":
    """The constraints in a file.

    Raises
    ------
    FormatError
        With the key that is not a constraint.
    """
    from eplb.core.constraints import Constraints, ReplicatedSlot
    from eplb.formats.json_fields import as_text, error_context

    given = read_toml(path, tuple(field.name for field in dataclasses.fields(Constraints)))
    with error_context(path):
        return Constraints(
            pin=_pairs(given.get("pin", []), f"{path}: pin"),
            forbid=_pairs(given.get("forbid", []), f"{path}: forbid"),
            apart=_sets(given.get("apart", []), f"{path}: apart"),
            together=_sets(given.get("together", []), f"{path}: together"),
            replica_counts=_counts(given.get("replica_counts"), f"{path}: replica_counts"),
            replicate_everywhere=_ids(given.get("replicate_everywhere", []), f"{path}: replicate_everywhere"),
            replicated_slot=ReplicatedSlot.named(
                as_text(given.get("replicated_slot", ReplicatedSlot.LAST), f"{path}: replicated_slot")
            ),
            expert_bytes=_bytes(given.get("expert_bytes"), f"{path}: expert_bytes"),
            rank_bytes=_bytes(given.get("rank_bytes"), f"{path}: rank_bytes"),
        )


def _pairs(value: object, place: str) -> list[tuple[int, int]]:
    from eplb.errors import FormatError

    for index, pair in enumerate(_sets(value, place)):
        if len(pair) != 2:
            raise FormatError(f"{place}[{index}] has {len(pair)} entries: expected [expert, rank]")
    return [(expert, rank) for expert, rank in _sets(value, place)]


def _sets(value: object, place: str) -> list[list[int]]:
    from eplb.formats.json_fields import as_list

    return [_ids(members, f"{place}[{i}]") for i, members in enumerate(as_list(value, place))]


def _ids(value: object, place: str) -> list[int]:
    from eplb.formats.json_fields import as_int, as_list

    return [as_int(item, f"{place}[{i}]") for i, item in enumerate(as_list(value, place))]


def _counts(value: object, place: str) -> list[int] | None:
    return None if value is None else _ids(value, place)


def _bytes(value: object, place: str) -> float | list[float] | None:
    from eplb.formats.json_fields import as_number, as_number_row

    if value is None:
        return None
    if isinstance(value, list):
        return as_number_row([_size(part, f"{place}[{i}]") for i, part in enumerate(value)], place).tolist()
    return as_number(_size(value, place), place)


def _size(value: object, place: str) -> object:
    """The number of bytes of a text; anything else as it is."""
    from eplb.errors import FormatError

    if not isinstance(value, str):
        return value
    try:
        return byte_count(value)
    except typer.BadParameter as error:
        raise FormatError(f"{place}: {error.message}") from None
