"""Defines what a dialect of placement files provides (`Format`), and what a user may add to a file (`ReadHints`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.core.topology import Nodes, Topology, ranks_by_node
from eplb.errors import FormatError
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape


@final
@dataclass(frozen=True)
class ReadHints:
    """What the user gives because the file may not hold it. None: the file has to hold it.

    A hint that contradicts the file is an error, never an override.

    Parameters
    ----------
    topology
        The topology of the placement; gives ranks, nodes and slots at once.
    num_ranks
        Expert-parallel ranks, for files that hold flat slot lists (``--ranks``).
    num_nodes
        Nodes of the ranks, or the ranks of each node (``--nodes``); one node when neither file nor hint gives more.
    num_experts
        Logical experts of a layer (``--num-experts``); the largest id plus one when neither file nor hint gives more.
    shape
        The model, for layers that the file numbers differently from the plan or does not number.
    """

    topology: Topology | None = None
    num_ranks: int | None = None
    num_nodes: Nodes | None = None
    num_experts: int | None = None
    shape: ModelShape | None = None

    def __post_init__(self) -> None:
        if isinstance(self.num_nodes, Sequence):
            sizes = ranks_by_node(sum(self.num_nodes) if self.num_ranks is None else self.num_ranks, self.num_nodes)
            object.__setattr__(self, "num_ranks", sum(sizes))
            object.__setattr__(self, "num_nodes", len(sizes) if len(set(sizes)) == 1 else sizes)


NO_HINTS = ReadHints()


class RecordStatus(StrEnum):
    """Where the record of a file's plan is: shape, topology, certificates."""

    IN_FILE = "in the file"
    IN_SIDECAR = "in the sidecar"
    """The sidecar's digest is that of the file's map."""
    ABSENT = "absent"
    """The file holds a map only, and there is no sidecar."""
    STALE = "stale"
    """A sidecar lies beside the file, but is about another map or another format; it is not used."""


class ParsedFile(Protocol):
    """The content of one placement file, parsed by its dialect. `plan` reads no file but the sidecar, once."""

    @property
    def record_status(self) -> RecordStatus:
        """Where the record of the plan is; FormatError for a sidecar that cannot be read."""
        ...

    def plan(self, hints: ReadHints) -> Plan:
        """The plan that the file holds.

        Raises
        ------
        FormatError
            For a map that is no placement, a hint that contradicts the file, or with the flag of a missing hint.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class EncodedFile:
    """A plan as the bytes of a file.

    Parameters
    ----------
    content
        The bytes.
    digested
        The integers by which a sidecar recognises the file's map; None for a dialect that needs no sidecar.
    plan
        The plan as the file holds it.
    """

    content: bytes
    digested: NDArray[np.int64] | None
    plan: Plan


class Format(Protocol):
    """One dialect of placement files. What it encodes, it parses to an equal plan, as far as the dialect allows."""

    @property
    def name(self) -> str:
        """The name in the table and on the command line."""
        ...

    @property
    def summary(self) -> str:
        """One line for `eplb formats`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes that a written file may have, the usual one first."""
        ...

    def recognises(self, source: SourceFile) -> bool:
        """Whether suffix and top-level JSON keys are those of the dialect."""
        ...

    def parse(self, source: SourceFile) -> ParsedFile:
        """Parse the file, ids of experts not yet checked.

        Raises
        ------
        FormatError
            With the place of what is not in the dialect.
        """
        ...

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """Check that the engine would load the plan as it is, and encode it for a file with one of the suffixes.

        Raises
        ------
        FormatError
            For a plan on which the engine would crash or which it would misread, with layer, rank and slot, and what
            the engine would do.
        """
        ...

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The flags or configuration lines that make the engine load the file, with the engine's version."""
        ...


def check_suffix(entry: Format, path: Path) -> None:
    """Refuse a name by which the engine, or `detect_format`, would not recognise the file."""
    if path.suffix not in entry.suffixes:
        raise FormatError(
            f"{path}: expected a name that ends in {' or '.join(entry.suffixes)} for a file in format {entry.name}"
        )
