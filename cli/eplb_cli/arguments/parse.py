"""Checks which options were typed, and parses lists and ranges of numbers, and numbers of bytes."""

import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from eplb.core.topology import Nodes as Nodes
else:
    Nodes = str  # for typer, which takes no union: `node_sizes` makes the value

_BYTES: Final = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?) ?(?:([kKMGT])(i?)B|B)?")
_POWERS: Final = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def refuse_typed(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Refuse options that have no effect together with the others.

    Raises
    ------
    typer.BadParameter
        Naming the first option of `names` (long form) that the user typed.
    """
    for param in context.command.params:
        source = None if param.name is None else context.get_parameter_source(param.name)
        if param.opts[0] in names and source is not None and not source.name.startswith("DEFAULT"):
            raise typer.BadParameter(reason, param_hint=param.opts[0])


def check_at_least(least: float, typed: Mapping[str, float | None]) -> None:
    """Refuse values of options below `least`; None is an option that was not given.

    Raises
    ------
    typer.BadParameter
        Naming the option, so that nobody reads the name of a parameter of the library.
    """
    for option, value in typed.items():
        if value is not None and not value >= least:
            raise typer.BadParameter(f"{value:g}: expected >= {least:g}", param_hint=option)


def check_above_zero(typed: Mapping[str, float | None]) -> None:
    """Refuse values of options that are not above zero; None is an option that was not given.

    Raises
    ------
    typer.BadParameter
        Naming the option.
    """
    for option, value in typed.items():
        if value is not None and not value > 0:
            raise typer.BadParameter(f"{value:g}: expected > 0", param_hint=option)


def id_list(text: str, option: str) -> tuple[int, ...]:
    """The ids in "3-60", "1,3,5" or a mix of both; an error names `option`."""
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise typer.BadParameter(f"{text!r}: expected ids as in 3-60 or 1,3,5", param_hint=option)
        ids.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(ids)


def node_sizes(value: int | str) -> Nodes:
    """The number of nodes, "3", or the ranks of each node, "8,8,7"."""
    parts = str(value).split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"{value!r}: expected a number of nodes, or the ranks of each as in 8,8,7")
    sizes = tuple(int(part) for part in parts)
    return sizes if len(sizes) > 1 else sizes[0]


def rank_pairs(text: str, option: str) -> tuple[tuple[int, int], ...]:
    """The (old, new) ranks in "0-2:0-2,3:7"; an error names `option`."""
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        old, colon, new = part.partition(":")
        both = (id_list(old, option), id_list(new, option)) if colon else ((), (0,))
        if len(both[0]) != len(both[1]):
            raise typer.BadParameter(
                f"{text!r}: expected old and new ranks, equally many, as in 0-2:0-2,3-5:4-6", param_hint=option
            )
        pairs.extend(zip(*both, strict=True))
    return tuple(pairs)


def number_range(text: str, option: str) -> range:
    """The numbers "FIRST:LAST:STEP", both ends included; an error names `option`."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or int(parts[2]) == 0:
        raise typer.BadParameter(f"{text!r}: expected FIRST:LAST:STEP as in 0:64:8", param_hint=option)
    return range(int(parts[0]), int(parts[1]) + 1, int(parts[2]))


def byte_count(value: str | float) -> float:
    """The bytes of "44040192", "44MB" (a million each), "1.5GiB" (1024 ** 3 each) or a number."""
    found = _BYTES.fullmatch(str(value).strip())
    if found is None:
        raise typer.BadParameter(f"{value!r}: expected a number of bytes as in 44040192, 44MB or 1.5GiB")
    number, prefix, is_binary = found.groups()
    count = float(number) * (1024 if is_binary else 1000) ** _POWERS.get(prefix or "", 0)
    if not math.isfinite(count):
        raise typer.BadParameter(f"{value!r}: too many bytes")
    return count
