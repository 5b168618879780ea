"""Refuses what is not a number, or not a whole one or too small where a count is expected; and what is no seed."""

from typing import TypeGuard

import numpy as np

from eplb.errors import InputError

SEEDS = 1 << 53
"""Seeds are below this: exact in JSON, and products with a number of runs fit 64 bits."""


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Check a count that a caller gave.

    Parameters
    ----------
    name
        The parameter, for the message.
    value
        A Python or numpy integer; a bool is none.
    least
        The smallest count that is legal.

    Raises
    ------
    InputError
        For anything else.
    """
    if not _is_whole(value):
        raise InputError(f"{name} = {value!r}: expected a whole number >= {least}")
    if value < least:
        raise InputError(f"{name} = {value}: expected >= {least}")


def check_number(name: str, value: object) -> None:
    """Check that a caller gave a number, of Python or numpy; a bool or a text is none, NaN and infinity are.

    Raises
    ------
    InputError
        For anything else, with `name` for the parameter.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{name} = {value!r}: expected a number")


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed is an integer that is not negative and below `SEEDS`."""
    if not _is_whole(seed) or not 0 <= seed < SEEDS:
        raise InputError(f"seed = {seed!r}: expected an integer, 0 <= seed < 2^53")


def check_max_moves(max_moves: int | None) -> None:
    """Raise InputError unless the moves are None or an integer that is not negative."""
    if max_moves is not None and not (_is_whole(max_moves) and max_moves >= 0):
        raise InputError(f"max_moves = {max_moves!r}: expected >= 0, an integer")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
