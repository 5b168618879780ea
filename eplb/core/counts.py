"""Refuses what is not a whole number, or is too small, where a count is expected."""

import numpy as np

from eplb.errors import InputError


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
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} = {value!r}: expected a whole number >= {least}")
    if value < least:
        raise InputError(f"{name} = {value}: expected >= {least}")
