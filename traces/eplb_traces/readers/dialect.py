"""Defines the interface of a dialect and the options of a reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import RoutingTrace


@final
@dataclass(frozen=True)
class ReadOptions:
    """What a file may not say and the caller does.

    Parameters
    ----------
    num_experts
        E, for token-level files that hold ids only.
    window
        Steps of a window when the tokens of a token-level file are counted; None: one window.
    shape
        The model, for files that say less of it than the caller knows.

    Raises
    ------
    InputError
        If `shape` has another number of experts than `num_experts`.
    """

    num_experts: int | None = None
    window: int | None = None
    shape: ModelShape | None = None

    def __post_init__(self) -> None:
        if self.shape is None:
            return
        if self.num_experts not in (None, self.shape.num_experts):
            raise InputError(f"num_experts = {self.num_experts}: the model has {self.shape.num_experts}")
        object.__setattr__(self, "num_experts", self.shape.num_experts)


class Dialect(Protocol):
    """One kind of file. A module with these three functions and one constant is a dialect."""

    SUFFIXES: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """Say from its first bytes whether an existing file, or folder, is of this dialect."""
        ...

    def read_load(self, path: Path, options: ReadOptions) -> ExpertLoad:
        """Read a load, or count the tokens of a trace."""
        ...

    def read_trace(self, path: Path, options: ReadOptions) -> RoutingTrace:
        """Read or open a token-level trace; InputError if the file has loads only."""
        ...


def first_bytes(path: Path, num_bytes: int = 4096) -> bytes:
    """Return the beginning of a file, nothing for a folder."""
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        return file.read(num_bytes)


def loads_only(what: str) -> InputError:
    """Make the error for a token-level question to a file of loads."""
    return InputError(f"{what} holds tokens per expert, not the choices of single tokens: expected a token-level trace")


def required_num_experts(options: ReadOptions) -> int:
    """Return E as the caller gave it.

    Raises
    ------
    InputError
        If the caller did not.
    """
    if options.num_experts is None:
        raise InputError("the file holds expert ids and does not say how many experts there are: give num_experts")
    return options.num_experts
