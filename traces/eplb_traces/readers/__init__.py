"""Reading what engines and recorders write: one dialect a file, all of them in the table READERS."""

from pathlib import Path

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers import (
    csv,
    mindie,
    npy,
    npz,
    omni,
    parquet,
    sglang,
    sglang_recorder,
    sglang_routed,
    trtllm,
    vllm,
    vllm_stats,
)
from eplb_traces.readers.dialect import Dialect, ReadOptions
from eplb_traces.routing_trace import RoutingTrace

READERS: dict[str, Dialect] = {
    "parquet": parquet,
    "npz": npz,
    "npy": npy,
    "csv": csv,
    "sglang": sglang,
    "sglang_recorder": sglang_recorder,
    "vllm_stats": vllm_stats,
    "vllm": vllm,
    "sglang_routed": sglang_routed,
    "trtllm": trtllm,
    "mindie": mindie,
    "omni": omni,
}

__all__ = ["READERS", "read_load", "read_trace"]


def read_load(
    path: str | Path,
    *,
    format: str | None = None,
    num_experts: int | None = None,
    window: int | None = None,
    shape: ModelShape | None = None,
) -> ExpertLoad:
    """Read a load of any dialect; a token-level trace is counted.

    Parameters
    ----------
    path
        A file, or the folder into which the ranks of a server wrote theirs.
    format
        Name of the dialect, a key of READERS; None: recognised by suffix and content.
    num_experts
        E, for token-level files that do not say it.
    window
        For token-level files, engine steps of a window; None: one window for the whole trace.
    shape
        The model, for files that say less: raw ids need its layers and top-k, and rows get their layer ids from it.

    Raises
    ------
    InputError
        Naming the file, the place in it, the value and what was expected.
    MissingExtraError
        If the dialect needs a package that is not installed.
    """
    path = Path(path)
    with naming_place(path):
        try:
            return _dialect(path, format).read_load(path, ReadOptions(num_experts, window, shape))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}") from error


def read_trace(
    path: str | Path, num_experts: int | None = None, *, format: str | None = None, shape: ModelShape | None = None
) -> RoutingTrace:
    """Open a token-level trace of any dialect.

    Parameters
    ----------
    path
        A file, or the folder into which the ranks of a server wrote theirs.
    num_experts
        E, for files that do not say it.
    format
        Name of the dialect, a key of READERS; None: recognised by suffix and content.
    shape
        The model, for files that say less: raw ids need its layers and top-k, and rows get their layer ids from it.

    Raises
    ------
    InputError
        Naming the file, the place in it, the value and what was expected; also if the file has loads only.
    MissingExtraError
        If the dialect needs a package that is not installed.
    """
    path = Path(path)
    with naming_place(path):
        try:
            return _dialect(path, format).read_trace(path, ReadOptions(num_experts, shape=shape))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}") from error


def _dialect(path: Path, format: str | None) -> Dialect:
    """Find the dialect: the named one, else by suffix, and by content where a suffix has several dialects or none."""
    if format is not None:
        if format not in READERS:
            raise InputError(f"format {format!r} is unknown: expected one of {', '.join(READERS)}")
        return READERS[format]
    if not path.exists():
        raise InputError("no such file or folder")
    suffix = "" if path.is_dir() else path.suffix.lower()
    by_suffix = [dialect for dialect in READERS.values() if suffix in dialect.SUFFIXES]
    if len(by_suffix) == 1:
        return by_suffix[0]
    for dialect in by_suffix or READERS.values():
        if dialect.recognises(path):
            return dialect
    if by_suffix:
        return by_suffix[0]
    raise InputError(f"neither suffix nor content is of a known format: give format, one of {', '.join(READERS)}")
