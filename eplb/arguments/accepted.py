"""Converts what a caller passes as a load, a trace or a placement to our types; refuses anything else by its type."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace
from eplb_traces.real_numbers import check_unmasked
from eplb_traces.windows import load_by_window

LoadLike = ExpertLoad | RoutingTrace | ArrayLike | Path
"""A load; a trace, cut by `eplb_traces.windows`; tokens [E], [L, E] or [W, L, E]; or the path of either."""

TraceLike = RoutingTrace | str | Path
"""A token-level trace, or the path of its file."""

PlacementLike = Placement | Plan | str | Path
"""A placement, the plan that holds it, or the path of a placement file."""

_LOADS = "an ExpertLoad, a RoutingTrace, the path of a file, or tokens as an array [E], [L, E] or [W, L, E]"
_TRACES = "a RoutingTrace or the path of a token-level trace"
_PLACEMENTS = "a Placement, a Plan or the path of a placement file"


def accepted_load(value: LoadLike, name: str = "load") -> ExpertLoad:
    """The load that a caller means.

    Parameters
    ----------
    value
        What was passed; see `LoadLike`. Nested lists and torch tensors count as arrays.
    name
        Name of the argument, for messages.

    Raises
    ------
    InputError
        For another type, for an array of another number of dimensions or without numbers, and as `read_load` does.
    """
    if isinstance(value, ExpertLoad):
        return value
    if isinstance(value, RoutingTrace):
        return load_by_window(value, None)
    if isinstance(value, str | os.PathLike):
        from eplb_traces.readers import read_load

        return read_load(Path(value))
    check_unmasked(value, name)
    array = _numbers(value)
    if array is None:
        raise _refusal(name, value, _LOADS)
    if not 1 <= array.ndim <= 3:
        raise InputError(f"{name} is an array of shape {array.shape}: expected [E], [L, E] or [W, L, E]")
    return ExpertLoad(array[None] if array.ndim == 1 else array)


def accepted_trace(value: TraceLike, name: str = "trace") -> RoutingTrace:
    """The token-level trace that a caller means.

    Raises
    ------
    InputError
        For another type than those of `TraceLike`, and as `read_trace` does.
    """
    if isinstance(value, RoutingTrace):
        return value
    if isinstance(value, str | os.PathLike):
        from eplb_traces.readers import read_trace

        return read_trace(Path(value))
    raise _refusal(name, value, _TRACES)


def accepted_placement(value: PlacementLike, shape: ModelShape | None = None, name: str = "placement") -> Placement:
    """The placement that a caller means.

    Parameters
    ----------
    value
        What was passed; see `PlacementLike`.
    shape
        The model, for files of engines, which may not hold it.
    name
        Name of the argument, for messages.

    Raises
    ------
    InputError
        For another type; FormatError as `read_placement` raises it.
    """
    if isinstance(value, Placement):
        return value
    return accepted_plan(value, shape, name).placement


def accepted_plan(value: PlacementLike, shape: ModelShape | None = None, name: str = "plan") -> Plan:
    """The plan that a caller means; a placement becomes a plan without certificates. See `accepted_placement`."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, Placement):
        return Plan(value, shape or ModelShape(value.num_layers, value.num_experts), "given")
    if isinstance(value, str | os.PathLike):
        return _read_plan(Path(value), shape)
    raise _refusal(name, value, _PLACEMENTS)


def accepted_topology(value: Topology, name: str = "topology") -> Topology:
    """The topology itself; InputError for anything else."""
    if not isinstance(value, Topology):
        raise _refusal(name, value, "an eplb.Topology")
    return value


def _read_plan(path: Path, shape: ModelShape | None) -> Plan:
    """The plan in a file; one of our own files holds its model, which is compared where it is used."""
    from eplb.formats import NO_HINTS, ReadHints, RecordStatus, parse_file

    parsed = parse_file(path)
    return parsed.plan(NO_HINTS if parsed.record_status is RecordStatus.IN_FILE else ReadHints(shape=shape))


def _numbers(value: object) -> NDArray[Any] | None:
    """An array of real numbers of an array, nested lists or a tensor; None for everything else."""
    plain = from_tensor(value)
    if not isinstance(plain, np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(plain)
    except (ValueError, TypeError):  # ragged rows
        return None
    return array if array.dtype.kind in "iuf" else None


def from_tensor(value: object) -> ArrayLike:
    """A numpy array for a torch tensor, the value itself otherwise; floats become float64: numpy has no bfloat16.

    Raises
    ------
    InputError
        For a tensor without the values of an array: sparse, nested or on the device "meta".
    """
    torch = sys.modules.get("torch")  # a caller that passes a tensor has imported torch
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or value.is_meta:
            kind = "nested" if value.is_nested else f"{value.layout} on {value.device}"
            raise InputError(f"a tensor is {kind}: expected a dense one that holds its values")
        tensor = value.detach().cpu()
        return cast(ArrayLike, (tensor.double() if tensor.is_floating_point() else tensor).numpy())
    return cast(ArrayLike, value)


def _refusal(name: str, value: object, expected: str) -> InputError:
    return InputError(f"{name} is of type {type(value).__name__}{_content(value)}: expected {expected}")


def _content(value: object) -> str:
    """What an array or a list holds, as far as numpy finds out."""
    if isinstance(value, np.ndarray):
        return f" of {value.dtype}"
    return f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
