"""Reading what engines and recorders write: one dialect a file, all of them in the table READERS."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.limits import check_size, size_of
from eplb_traces.files.remote import url_of
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers import (
    csv,
    expert_profiles,
    json_lists,
    load_history,
    mindie,
    npy,
    npz,
    omni,
    parquet,
    routed_lists,
    safetensors,
    sglang,
    sglang_recorder,
    sglang_routed,
    token_records,
    torch_tensors,
    trtllm,
    vllm,
    vllm_stats,
)
from eplb_traces.readers.dialect import Dialect, Reading, ReadOptions, Wanted
from eplb_traces.readers.recognition import find_dialect
from eplb_traces.readers.told import with_told
from eplb_traces.routing_trace import RoutingTrace
from eplb_traces.samples import located

READERS: dict[str, Dialect] = {
    "parquet": parquet,
    "npz": npz,
    "npy": npy,
    "csv": csv,
    "sglang": sglang,
    "sglang_recorder": sglang_recorder,
    "torch": torch_tensors,
    "safetensors": safetensors,
    "vllm_stats": vllm_stats,
    "vllm": vllm,
    "routed_lists": routed_lists,
    "sglang_routed": sglang_routed,
    "load_history": load_history,
    "expert_profiles": expert_profiles,
    "token_records": token_records,
    "json_lists": json_lists,
    "trtllm": trtllm,
    "mindie": mindie,
    "omni": omni,
}
"""Every dialect by name, in the order in which files are tried."""

__all__ = ["READERS", "ReadOptions", "Reading", "read", "read_load", "read_trace"]

_logger = logging.getLogger("eplb")


def read(path: str | Path, options: ReadOptions | None = None, *, format: str | None = None) -> Reading:
    """Read a file of any dialect, and how it was understood.

    Parameters
    ----------
    path
        A file, the folder into which the ranks of a server wrote theirs, or `sample:NAME` for a trace that is shipped.
    options
        What the caller says about the file; checked against it, and used.
    format
        Name of the dialect, a key of READERS; None: recognised by suffix and content.

    Raises
    ------
    InputError
        Naming the file, the place in it, the value and what was expected; also for an option without effect.
    MissingExtraError
        If the dialect needs a package that is not installed.
    """
    given, options = path, options or ReadOptions()
    path = located(given)
    with naming_place(url_of(given) or path):
        try:
            _, dialect = find_dialect(path, format, READERS)
            reading = with_told(dialect.read(path, options), options)
            _check_model(reading, size_of(path))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}") from error
        except RecursionError as error:
            raise InputError("lists or objects lie too deep in each other") from error
        except MemoryError as error:
            raise InputError(f"needs more memory than there is: {error or 'a number in it is no size'}") from error
    if not reading.is_own:
        _logger.debug("%s: %s", given, reading.summary)
    return reading


def _check_model(reading: Reading, num_bytes: int) -> None:
    """Refuse the trace of a model whose counts alone would need far more than the file."""
    shape = reading.content.shape
    check_size((shape.num_layers, shape.num_experts), num_bytes, "the model of the file")


def read_load(  # noqa: PLR0913  # the front door: everything a caller can say about a file, most by keyword
    path: str | Path,
    *,
    format: str | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    moe_layer_ids: Sequence[int] | None = None,
    num_hidden_layers: int | None = None,
    window: int | None = None,
    shape: ModelShape | None = None,
    ignore_ids: Sequence[int] = (),
    ignore_columns: Sequence[int] = (),
    recorded_under: NDArray[np.integer] | None = None,
) -> ExpertLoad:
    """Read a load of any dialect; a token-level trace is counted.

    Parameters
    ----------
    path
        A file, the folder into which the ranks of a server wrote theirs, or `sample:NAME` for a trace that is shipped.
    format
        Name of the dialect, a key of READERS; None: recognised by suffix and content.
    num_experts, top_k, moe_layer_ids, num_hidden_layers, shape
        The model, as far as the caller knows it. Checked against the file; adds what the file does not say.
    window
        For token-level files, engine steps of a window; None: as `eplb_traces.windows` cuts them, `ALL_STEPS`: one
        window for the whole trace. In a table, a sign that repeated layer ids are windows.
    ignore_ids, ignore_columns, recorded_under
        See `ReadOptions`.

    Raises
    ------
    InputError
        Naming the file, the place in it, the value and what was expected; also for an option without effect.
    MissingExtraError
        If the dialect needs a package that is not installed.

    Examples
    --------
    >>> import eplb
    >>> eplb.read_load("sample:moe-435m-windows")
    ExpertLoad(150 windows x 8 layers x 256 experts)
    """
    with naming_place(url_of(path) or path):
        options = ReadOptions(
            num_experts=num_experts,
            top_k=top_k,
            moe_layer_ids=moe_layer_ids,
            num_hidden_layers=num_hidden_layers,
            shape=shape,
            window=window,
            ignore_ids=tuple(ignore_ids),
            ignore_columns=tuple(ignore_columns),
            recorded_under=recorded_under,
            wants=Wanted.LOAD,
        )
        return read(path, options, format=format).load(window)


def read_trace(  # noqa: PLR0913  # the front door: everything a caller can say about a file, most by keyword
    path: str | Path,
    num_experts: int | None = None,
    *,
    format: str | None = None,
    top_k: int | None = None,
    moe_layer_ids: Sequence[int] | None = None,
    num_hidden_layers: int | None = None,
    shape: ModelShape | None = None,
    ignore_ids: Sequence[int] = (),
    ignore_columns: Sequence[int] = (),
) -> RoutingTrace:
    """Open a token-level trace of any dialect; parameters and errors as in `read_load`.

    Raises
    ------
    InputError
        Also if the file has loads only.

    Examples
    --------
    >>> import eplb
    >>> trace = eplb.read_trace("sample:moe-435m")
    >>> trace.load(window=10)
    ExpertLoad(4 windows x 8 layers x 256 experts)
    """
    with naming_place(url_of(path) or path):
        options = ReadOptions(
            num_experts=num_experts,
            top_k=top_k,
            moe_layer_ids=moe_layer_ids,
            num_hidden_layers=num_hidden_layers,
            shape=shape,
            ignore_ids=tuple(ignore_ids),
            ignore_columns=tuple(ignore_columns),
            wants=Wanted.TRACE,
        )
        content = read(path, options, format=format).content
    if isinstance(content, ExpertLoad):  # `with_told` has refused it
        raise InputError(f"{path}: holds loads only")
    return content
