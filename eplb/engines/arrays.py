"""Converts an engine's tensors to numpy arrays and back, without importing torch."""

import sys
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from eplb.arguments.accepted import from_tensor
from eplb.errors import InputError
from eplb_traces.real_numbers import check_unmasked, real_numbers

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "torch.Tensor", NDArray[np.int64])


def as_load(value: object, name: str = "weight", *, dimensions: str = "layers, experts") -> NDArray[np.float64]:
    """Tokens of each expert as float64, from a tensor of any type on any device.

    Parameters
    ----------
    value
        A tensor of any type and device, contiguous or not, an array or nested lists.
    name
        Name of the argument, for error messages.
    dimensions
        Names of the expected dimensions.

    Raises
    ------
    InputError
        For ragged rows, elements that are no numbers, a wrong number of dimensions, an empty dimension, and values that
        are not finite and >= 0.
    """
    load = real_numbers(from_tensor(value), name)
    if load.ndim != dimensions.count(",") + 1 or 0 in load.shape:
        raise InputError(f"{name} has shape {load.shape}: expected [{dimensions}]")
    if not (np.isfinite(load).all() and (load >= 0).all()):
        raise InputError(f"{name}: expected finite values >= 0")
    return load


def as_history(value: object, name: str, *, most_windows: int) -> NDArray[np.float64]:
    """[W, L, E] tokens by window, of counts [steps, layers, experts] or [layers, experts].

    Steps without tokens, such as unused ones of a ring buffer, are ignored; the others are summed into at most
    `most_windows` windows of equal numbers of steps. The steps are not copied: an engine stores a thousand.

    Raises
    ------
    InputError
        As in `as_load`.
    """
    check_unmasked(value, name)
    steps = np.asarray(from_tensor(value))
    if steps.ndim != 3 or 0 in steps.shape or not np.issubdtype(steps.dtype, np.number):
        dimensions = "steps, layers, experts" if steps.ndim > 2 else "layers, experts"
        return as_load(steps, name, dimensions=dimensions).reshape(-1, *steps.shape[-2:])
    if not (steps.min() >= 0 and steps.max() < np.inf):  # False for NaN too
        raise InputError(f"{name}: expected finite values >= 0")
    used = np.nonzero(steps.any(axis=(1, 2)))[0]
    windows = np.array_split(used, min(most_windows, used.size)) if used.size else [np.zeros(1, np.int64)]
    return np.stack([steps[window].sum(axis=0, dtype=np.float64) for window in windows])


def as_ids(value: object, name: str, *, dimensions: str = "layers, slots") -> NDArray[np.int64]:
    """Expert ids as integers, without range check; parameters and errors as in `as_load`."""
    check_unmasked(value, name)
    try:
        ids = np.asarray(from_tensor(value))
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not a rectangular array of ids: {error}") from error
    if ids.ndim != dimensions.count(",") + 1 or 0 in ids.shape:
        raise InputError(f"{name} has shape {ids.shape}: expected [{dimensions}]")
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{name} holds {ids.dtype}: expected integers")
    return np.ascontiguousarray(ids, dtype=np.int64)


def num_dimensions(value: object) -> int:
    """Dimensions of a tensor, an array or nested lists."""
    return np.ndim(from_tensor(value))


def like(value: Array, array: NDArray[np.int64]) -> Array:
    """`array` in the type of `value`: a CPU tensor if `value` is a tensor, otherwise the array itself."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return cast(Array, torch.from_numpy(array))
    return cast(Array, array)  # type: ignore[redundant-cast]  # required for the tensor case
