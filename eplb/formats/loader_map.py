"""Defines the map of a file as the engine's loader gets it (`LoaderMap`), with checks that several loaders share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.engine_limits import Consequences
from eplb.formats.protocol import Format, ParsedFile
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape


@final
@dataclass(frozen=True, eq=False)
class LoaderMap:
    """A file as its loader sees it.

    Parameters
    ----------
    rows
        [L, P] expert ids in flat slot order.
    labels
        [L] names of the layers in messages.
    num_experts
        Logical experts of a layer where the file holds the number.
    notes
        What could not be checked, and why.
    may_have_empty_slots
        Whether a rank ends in -1 in layers that have fewer redundant experts than others.
    """

    rows: NDArray[np.int64]
    labels: tuple[str, ...]
    num_experts: int | None
    notes: tuple[str, ...]
    may_have_empty_slots: bool = False


class EngineParsedFile(ParsedFile, Protocol):
    """A parsed file of a dialect that an engine loads."""

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """The map as the engine's loader gets it, on an engine of `num_ranks` ranks that runs the model `shape`.

        Raises
        ------
        FormatError
            For another number of layers or ranks, or a suffix that the engine does not load.
        """
        ...


class EngineFormat(Format, Protocol):
    """A dialect that an engine loads."""

    @property
    def consequences(self) -> Consequences:
        """What the engine does with a map that has a defect."""
        ...

    def parse(self, source: SourceFile) -> EngineParsedFile:
        """See `Format.parse`."""
        ...


def numbered_layers(num_layers: int) -> tuple[str, ...]:
    """Labels of layers that a file numbers from 0."""
    return tuple(f"layer {i}" for i in range(num_layers))


def check_num_ranks(path: Path, found: int, num_ranks: int, where: str) -> None:
    """Refuse a file for another number of ranks, which it holds at `where`."""
    if found != num_ranks:
        raise FormatError(f"{path}: {where} has {found} ranks: expected {num_ranks}")


def check_num_layers(path: Path, found: int, shape: ModelShape | None) -> tuple[str, ...]:
    """Refuse a file for another number of MoE layers; without a shape return a note instead."""
    if shape is None:
        return (f"{found} layers: expected as many as the model has MoE layers",)
    if found != shape.num_layers:
        raise FormatError(f"{path}: {found} layers: expected {shape.num_layers} MoE layers")
    return ()
