"""Checks that what a caller passes as numbers is numbers: no truth values, texts or dates, and nothing masked."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb_traces.errors import InputError


def real_numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """A new C-ordered float64 array.

    Parameters
    ----------
    values
        An array or nested lists of integers or floats.
    name
        For the message.

    Raises
    ------
    InputError
        For ragged lists, for elements of another type, and for an array with masked elements.
    """
    check_unmasked(values, name)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "iuf" and array.size:
        raise InputError(f"{name} is not a rectangular array of numbers: it holds {array.dtype}")
    return np.array(array, dtype=np.float64, order="C")


def check_unmasked(values: object, name: str) -> None:
    """Raise InputError for a masked element, in a masked array or in nested lists that hold one.

    numpy would use the numbers under the mask.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        at = tuple(np.argwhere(np.ma.getmaskarray(values))[0].tolist())
        place = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise InputError(f"{place} is masked: expected a number")
    if isinstance(values, list | tuple):
        for i, row in enumerate(values):
            if isinstance(row, list | tuple | np.ma.MaskedArray):
                check_unmasked(row, f"{name}[{i}]")
