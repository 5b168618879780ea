"""Shortens the names of plans and files for figures, and keeps them distinct."""

from collections import Counter
from collections.abc import Sequence

LONGEST_NAME = 40
_LEAST_COMMON = 12
"""A shorter common start or end of the names is kept."""


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of at most 40 letters, as distinct as the given ones: what long names have in common is left out.

    Names that still coincide are numbered from 0 in the order given.
    """
    if max(map(len, names), default=0) <= LONGEST_NAME:
        return tuple(names)
    start, end = _common(names) if len(names) > 1 else (0, 0)
    found = [_middle_out(_without(name, start, end)) for name in names]
    twice = {name for name, count in Counter(found).items() if count > 1}
    return tuple(_middle_out(f"{index}: {short}") if short in twice else short for index, short in enumerate(found))


def _common(names: Sequence[str]) -> tuple[int, int]:
    """Length of the common start and of the common end of the names, which do not overlap; 0 where short."""
    start = _common_start(names)
    end = _common_start([name[start:][::-1] for name in names])
    return start if start >= _LEAST_COMMON else 0, end if end >= _LEAST_COMMON else 0


def _common_start(names: Sequence[str]) -> int:
    """Length of the longest common start."""
    return next(
        (place for place, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1),
        min(map(len, names)),
    )


def _without(name: str, start: int, end: int) -> str:
    kept = name[start : len(name) - end]
    return f"{'…' if start else ''}{kept}{'…' if end else ''}"


def _middle_out(name: str) -> str:
    """The name; its middle is left out if it is too long."""
    if len(name) <= LONGEST_NAME:
        return name
    head = LONGEST_NAME // 2
    return f"{name[:head]}…{name[len(name) - (LONGEST_NAME - head - 1) :]}"
