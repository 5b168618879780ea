"""What every dialect offers, what a caller may say about a file, and what a reader answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.limits import MOST_EXPERTS
from eplb_traces.model_shape import ModelShape, id_ranges
from eplb_traces.routing_trace import RoutingTrace
from eplb_traces.windows import load_by_window


class Wanted(StrEnum):
    """What a caller asks for."""

    LOAD = "load"
    TRACE = "trace"


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ReadOptions:
    """What the caller says about a file. Each value is checked against the file, and used; see `told.py`.

    Parameters
    ----------
    num_experts
        E, routed experts of a layer.
    top_k
        K, choices of a token.
    moe_layer_ids
        Absolute index of each MoE layer, ascending.
    num_hidden_layers
        Layers of the model, dense ones included.
    shape
        The model; where given it fills the four values above, which must not contradict it.
    window
        Steps of a window when the tokens of a trace are counted. In a table, repeated layer ids are windows then.
    ignore_ids
        Expert ids that are no placed experts (fused shared experts, zero experts, fill values): such choices are left
        out.
    ignore_columns
        Columns, counted from 0, that are no placed experts: choices of a token in a trace, experts in a load.
    recorded_under
        [L, P] the logical expert of each slot while the file was recorded, for files that count slots.
    wants
        What the caller has said that the file holds, by asking for it; None to take what it is. A trace also answers
        for a load.

    Raises
    ------
    InputError
        If `shape` contradicts another value.
    """

    num_experts: int | None = None
    top_k: int | None = None
    moe_layer_ids: Sequence[int] | None = None
    num_hidden_layers: int | None = None
    shape: ModelShape | None = None
    window: int | None = None
    ignore_ids: tuple[int, ...] = ()
    ignore_columns: tuple[int, ...] = ()
    recorded_under: NDArray[np.integer] | None = None
    wants: Wanted | None = None

    def __post_init__(self) -> None:
        if self.moe_layer_ids is not None:
            object.__setattr__(self, "moe_layer_ids", tuple(int(i) for i in self.moe_layer_ids))
        if self.shape is None:
            return
        for name in ("num_experts", "top_k", "moe_layer_ids", "num_hidden_layers"):
            told, of_shape = getattr(self, name), getattr(self.shape, name)
            if told is not None and of_shape is not None and told != of_shape:
                raise InputError(f"{name} = {told}: the model has {of_shape}")
            object.__setattr__(self, name, told if of_shape is None else of_shape)

    @property
    def says_layers(self) -> bool:
        """Whether the caller has said how many layers there are."""
        return bool(self.moe_layer_ids or self.num_hidden_layers or self.shape)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What a reader made of a file, and how it understood it.

    Parameters
    ----------
    content
        A load, or a token-level trace.
    form
        What the axes or columns were taken for: "long form layer_id, expert_id, count".
    notes
        What was left out, and what was concluded rather than read, a phrase each: "column name left out".
    used
        Names of the fields of `ReadOptions` that had an effect. The four that describe the model need not be named.
    is_own
        The file is of our own format and says all this itself.
    """

    content: ExpertLoad | RoutingTrace
    form: str
    notes: tuple[str, ...] = ()
    used: frozenset[str] = field(default_factory=frozenset)
    is_own: bool = False

    @property
    def summary(self) -> str:
        """One line: form, kind, layers and their ids, experts, windows, notes."""
        shape = self.content.shape
        ids = shape.moe_layer_ids
        which = "ids unknown" if ids is None else f"ids {id_ranges(ids)}"
        if shape.num_hidden_layers is not None:
            which += f" of {shape.num_hidden_layers} hidden layers"
        parts = [f"{shape.num_layers} layers ({which})", f"{shape.num_experts} experts"]
        if isinstance(self.content, ExpertLoad):
            count = self.content.num_windows
            parts = ["load", *parts, "1 window" if count == 1 else f"{count} windows"]
        else:
            parts = ["token-level trace", *parts, f"top-{shape.top_k}"]
        return "; ".join([f"{self.form}: {', '.join(parts)}", *self.notes])

    def load(self, window: int | None = None) -> ExpertLoad:
        """The load; the tokens of a trace are counted as `eplb_traces.windows.load_by_window` does it."""
        return load_by_window(self.content, window) if isinstance(self.content, RoutingTrace) else self.content


class Dialect(Protocol):
    """One kind of file. A module with these constants and functions is a dialect."""

    SUFFIXES: tuple[str, ...]
    """Of files that may be of this dialect, lower case, with the point; empty for folders."""
    RECOGNISED_BY: str
    """For the table of dialects: what in a file shows the dialect."""
    BECOMES: str
    """For the table of dialects: load, trace, or which of them when."""
    REFUSES: str
    """For the table of dialects: what is refused."""

    def recognises(self, path: Path) -> bool:
        """Whether an existing file, or folder, is of this dialect, judged by its first bytes."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Reading:
        """Read the file; InputError naming the place, the value and what was expected."""
        ...


def first_bytes(path: Path, num_bytes: int = 4096) -> bytes:
    """The beginning of a file; nothing for a folder."""
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        return file.read(num_bytes)


def required_num_experts(options: ReadOptions) -> int:
    """E as the caller gave it.

    Raises
    ------
    InputError
        If the caller did not.
    """
    if options.num_experts is None:
        raise InputError(
            "the file holds expert ids and does not say how many experts there are: give num_experts (--num-experts)"
        )
    if options.num_experts > MOST_EXPERTS:
        raise InputError(f"num_experts = {options.num_experts}: expected at most {MOST_EXPERTS} where ids are read")
    return options.num_experts
