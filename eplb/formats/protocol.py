"""Knows what a format can do and what a user may add to a file; knows no dialect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb_traces import ModelShape


@final
@dataclass(frozen=True)
class ReadHints:
    """What the user knows and the file may not say. None means: only the file can tell.

    A hint that contradicts the file is an error, never an override.

    Parameters
    ----------
    topology
        The machine the placement is for; gives ranks, nodes and slots at once.
    num_ranks
        Expert-parallel ranks, for files that hold flat slot lists (``--ranks``).
    num_nodes
        Nodes of the ranks (``--nodes``); one node when neither file nor hint says more.
    num_experts
        Logical experts of a layer (``--experts``); the largest id plus one when neither file nor hint says more.
    shape
        The model, for the layers that a file names in another way than the plan or not at all.
    """

    topology: Topology | None = None
    num_ranks: int | None = None
    num_nodes: int | None = None
    num_experts: int | None = None
    shape: ModelShape | None = None


class Format(Protocol):
    """One dialect of expert-map files. Reading and writing are inverse as far as the dialect can speak."""

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

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan in a file.

        Raises
        ------
        FormatError
            With the place of what is not in the dialect, or with the flag for what only a hint can say.
        """
        ...

    def check(self, plan: Plan) -> None:
        """Refuse what the engine would die of or misread, before anything is written.

        Raises
        ------
        FormatError
            Naming layer, rank and slot, and what the engine would do.
        """
        ...

    def write(self, plan: Plan, path: Path) -> None:
        """Check, then put the whole file at `path`, or nothing.

        Raises
        ------
        FormatError
            As `check` does, and for a suffix that is not the dialect's.
        InputError
            If the path cannot be written.
        """
        ...

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The flags or configuration lines that make the engine load the file, with the engine's version."""
        ...
