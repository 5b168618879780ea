"""A file whose content is known, and how a reading of it compares with the truth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces import InputError
from eplb_traces.readers import ReadOptions, read


@dataclass(frozen=True)
class Variation:
    """A file, and what it holds.

    Parameters
    ----------
    kind
        For messages and for counting how many were read.
    name
        Of the file or folder.
    write
        Writes it.
    truth
        [W, L, E] the load; None: the file holds no load and no trace, it must be refused.
    layer_ids
        As the file or the options have them; None where nobody gives them.
    options
        Of `ReadOptions`.
    must_be_read
        File and options say enough: a refusal is wrong as well.
    """

    kind: str
    name: str
    write: Callable[[Path], None]
    truth: NDArray[np.float64] | None
    layer_ids: tuple[int, ...] | None = None
    options: dict[str, object] = field(default_factory=dict)
    must_be_read: bool = False


def misreading(variation: Variation, path: Path) -> str | None:
    """What is wrong with how a file is read; None where it is read as its truth, or refused and may be."""
    try:
        reading = read(path, ReadOptions(**variation.options))
        load = reading.load()
    except InputError as error:
        return f"refused: {error}" if variation.must_be_read else None
    said = f"read as {reading.summary}"
    if variation.truth is None:
        return f"other: {said}"
    if load.shape.moe_layer_ids != variation.layer_ids:
        return f"layers {load.shape.moe_layer_ids} for {variation.layer_ids}: {said}"
    if not np.array_equal(load.tokens, variation.truth):
        return f"other: {said}"
    return None


def is_read(variation: Variation, path: Path) -> bool:
    """Whether a file is not refused."""
    try:
        read(path, ReadOptions(**variation.options)).load()
    except InputError:
        return False
    return True
