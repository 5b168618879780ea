"""Knows how an engine's tensors become numpy arrays and back; knows no placement. It never imports torch on its own."""

import sys
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.errors import InputError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "torch.Tensor", NDArray[np.int64])


def as_load(value: object, name: str = "weight", *, dimensions: str = "layers, experts") -> NDArray[np.float64]:
    """Tokens of each expert in double precision, whatever an engine counts them in and wherever it keeps them.

    Parameters
    ----------
    value
        A tensor of any type and device, contiguous or not, an array or nested lists.
    name
        What the caller calls it, for messages.
    dimensions
        Names of the dimensions that it must have.

    Raises
    ------
    InputError
        For ragged rows, another number of dimensions, an empty dimension, and values that are not finite and >= 0.
    """
    try:
        load = np.asarray(_from_tensor(value), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not a rectangular array of numbers: {error}") from error
    if load.ndim != dimensions.count(",") + 1 or 0 in load.shape:
        raise InputError(f"{name} has shape {load.shape}: expected [{dimensions}]")
    if not (np.isfinite(load).all() and (load >= 0).all()):
        raise InputError(f"{name}: expected finite values >= 0")
    return np.ascontiguousarray(load)


def as_history(value: object, name: str, *, most_windows: int) -> NDArray[np.float64]:
    """[W, L, E] tokens by window, of counts [steps, layers, experts] or [layers, experts].

    Steps without any tokens, as the unused ones of a ring buffer are, do not count; the others are summed into at most
    `most_windows` windows of equally many. No copy of the steps is made: an engine keeps a thousand.

    Raises
    ------
    InputError
        As in `as_load`.
    """
    steps = np.asarray(_from_tensor(value))
    if steps.ndim != 3 or 0 in steps.shape or not np.issubdtype(steps.dtype, np.number):
        dimensions = "steps, layers, experts" if steps.ndim > 2 else "layers, experts"
        return as_load(steps, name, dimensions=dimensions).reshape(-1, *steps.shape[-2:])
    if not (steps.min() >= 0 and steps.max() < np.inf):  # false for what is not a number as well
        raise InputError(f"{name}: expected finite values >= 0")
    used = np.nonzero(steps.any(axis=(1, 2)))[0]
    windows = np.array_split(used, min(most_windows, used.size)) if used.size else [np.zeros(1, np.int64)]
    return np.stack([steps[window].sum(axis=0, dtype=np.float64) for window in windows])


def as_ids(value: object, name: str, *, dimensions: str = "layers, slots") -> NDArray[np.int64]:
    """Expert ids as integers, not yet looked at; parameters and errors as in `as_load`."""
    try:
        ids = np.asarray(_from_tensor(value))
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not a rectangular array of ids: {error}") from error
    if ids.ndim != dimensions.count(",") + 1 or 0 in ids.shape:
        raise InputError(f"{name} has shape {ids.shape}: expected [{dimensions}]")
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{name} holds {ids.dtype}: expected integers")
    return np.ascontiguousarray(ids, dtype=np.int64)


def num_dimensions(value: object) -> int:
    """Dimensions of a tensor, an array or nested lists."""
    return np.ndim(_from_tensor(value))


def like(value: Array, array: NDArray[np.int64]) -> Array:
    """`array` as what `value` is: a tensor on the CPU for a tensor, else itself."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return cast(Array, torch.from_numpy(array))
    return cast(Array, array)  # type: ignore[redundant-cast]  # not redundant for the tensor case


def _from_tensor(value: object) -> ArrayLike:
    """A numpy array for a tensor; numpy has no bfloat16, so floats come in double."""
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return cast(ArrayLike, (tensor.double() if tensor.is_floating_point() else tensor).numpy())
    return cast(ArrayLike, value)
