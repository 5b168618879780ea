"""Checks whether an engine would load a placement file as it is meant; the engine's own part is in its dialect's file.

The file is checked as the engine's loader gets it, before a Placement is made of it. The error for the first defect
names the place and what the engine would do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np

from eplb.core.placement import EMPTY_SLOT
from eplb.errors import FormatError, UnknownNameError
from eplb.formats.ascend import Ascend
from eplb.formats.engine_limits import Consequences, MapDefect
from eplb.formats.loader_map import EngineFormat, LoaderMap
from eplb.formats.omni import Omni
from eplb.formats.sglang import Sglang
from eplb.formats.source_file import SourceFile
from eplb.formats.trtllm import Trtllm
from eplb.formats.vllm import Vllm
from eplb_traces import ModelShape
from eplb_traces.display import fields_html, short_repr
from eplb_traces.model_shape import id_ranges

_ALL: Final[tuple[EngineFormat, ...]] = (Sglang(), Vllm(), Ascend(), Trtllm(), Omni())
ENGINES: Final[dict[str, EngineFormat]] = {entry.name: entry for entry in _ALL}


@final
@dataclass(frozen=True)
class EngineReport:
    """What a file holds that its engine would load. `str` of it is the text for the user.

    `num_slots` is of the fullest layer, `slots_of_layers` of each. `num_duplicates` counts replicas of an expert beside
    another one on the same rank, which the engine loads and which do nothing for balance; `notes` list what could not
    be checked, and why.
    """

    engine: str
    num_layers: int
    num_experts: int
    num_slots: int
    num_ranks: int
    num_duplicates: int
    notes: tuple[str, ...]
    slots_of_layers: tuple[int, ...]

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one for each expert, in the fullest layer."""
        return self.num_slots - self.num_experts

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    def __str__(self) -> str:
        slots = ", ".join(self._slots_text(count) for count in sorted(set(self.slots_of_layers), reverse=True))
        facts = f"{self.engine} would load it: {self.num_layers} layers, {slots}"
        return "\n".join(
            [f"{facts}, {self.num_duplicates} duplicates on a rank", *(f"note: {note}" for note in self.notes)]
        )

    def _slots_text(self, num_slots: int) -> str:
        """The layers of so many slots, which are named where layers differ."""
        layers = [index for index, count in enumerate(self.slots_of_layers) if count == num_slots]
        where = "" if len(layers) == self.num_layers else f" in layers {id_ranges(layers)}"
        return (
            f"{self.num_experts} experts + {num_slots - self.num_experts} redundant = {num_slots} slots on "
            f"{self.num_ranks} ranks of {num_slots // self.num_ranks}{where}"
        )


def check_file(
    path: str | Path,
    engine: str,
    num_ranks: int,
    num_experts: int | None = None,
    shape: ModelShape | None = None,
) -> EngineReport:
    """Refuse a file on which the engine would crash or which it would misread.

    Parameters
    ----------
    path
        A placement file in the engine's own dialect.
    engine
        One of ENGINES.
    num_ranks
        Expert-parallel ranks of the engine.
    num_experts
        Logical experts of a layer; without it missing experts at the end of the ids are not found.
    shape
        The model; without it missing layers are not found.

    Raises
    ------
    FormatError
        With layer, rank, slot and expert, and what the engine would do.
    UnknownNameError
        For a name that is no engine's.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if num_ranks < 1:
        raise FormatError(f"ranks = {num_ranks}: expected >= 1")
    entry = ENGINES[engine]
    found = entry.parse(SourceFile(Path(path))).loader_map(num_ranks, shape)
    experts, notes = _number_of_experts(f"{path}", found, num_experts, shape)
    _check_ids(f"{path}", found, experts, entry.consequences)
    _check_ranks(f"{path}", found, num_ranks, entry.consequences)
    _check_every_expert(f"{path}", found, experts, entry.consequences)
    duplicates = _count_duplicates(f"{path}", found, num_ranks, entry.consequences)
    num_layers, num_slots = found.rows.shape
    slots_of_layers = tuple(int(n) for n in (found.rows != EMPTY_SLOT).sum(axis=1))
    return EngineReport(
        engine, num_layers, experts, num_slots, num_ranks, duplicates, (*found.notes, *notes), slots_of_layers
    )


def _number_of_experts(
    place: str, found: LoaderMap, num_experts: int | None, shape: ModelShape | None
) -> tuple[int, tuple[str, ...]]:
    """The experts of a layer, from the file, the user or, with a note, the largest id."""
    known = [n for n in (found.num_experts, num_experts, None if shape is None else shape.num_experts) if n is not None]
    if len(set(known)) > 1:
        raise FormatError(f"{place}: {known[0]} experts, but {known[1]} were given: expected the same")
    if known:
        return known[0], ()
    largest = int(found.rows.max()) + 1
    note = f"{largest} experts by the largest id; give --num-experts to see whether the last ones are missing"
    return max(largest, 1), (note,)


def _check_ids(place: str, found: LoaderMap, num_experts: int, consequences: Consequences) -> None:
    wrong = (found.rows < 0) | (found.rows >= num_experts)
    if found.may_have_empty_slots:
        wrong &= found.rows != EMPTY_SLOT
    if wrong.any():
        layer, slot = (int(i) for i in np.argwhere(wrong)[0])
        value = int(found.rows[layer, slot])
        defect = MapDefect.ID_TOO_LARGE if value >= num_experts else MapDefect.EMPTY_SLOT
        what = "is an empty slot" if value == EMPTY_SLOT else "is no expert"
        raise FormatError(
            f"{place}: {found.labels[layer]}, slot {slot} = {value} {what}: {consequences[defect]}; "
            f"expected 0 <= id < {num_experts}"
        )


def _check_ranks(place: str, found: LoaderMap, num_ranks: int, consequences: Consequences) -> None:
    num_slots = found.rows.shape[1]
    if num_slots % num_ranks:
        raise FormatError(
            f"{place}: {num_slots} slots a layer on {num_ranks} ranks: {consequences[MapDefect.INDIVISIBLE]}; "
            f"expected a multiple of {num_ranks}"
        )


def _check_every_expert(place: str, found: LoaderMap, num_experts: int, consequences: Consequences) -> None:
    for label, row in zip(found.labels, found.rows, strict=True):
        counts = np.bincount(row[row >= 0], minlength=num_experts)
        if not counts.all():
            raise FormatError(
                f"{place}: {label}: expert {int(np.argmin(counts))} has no slot: "
                f"{consequences[MapDefect.MISSING_EXPERT]}; expected every expert in every layer"
            )


def _count_duplicates(place: str, found: LoaderMap, num_ranks: int, consequences: Consequences) -> int:
    """Slots whose expert an earlier slot of the rank holds; refused where the engine loses one."""
    num_layers = found.rows.shape[0]
    local = np.sort(found.rows.reshape(num_layers, num_ranks, -1), axis=2)
    duplicate = (local[:, :, 1:] == local[:, :, :-1]) & (local[:, :, 1:] >= 0)
    if duplicate.any() and MapDefect.DUPLICATE in consequences:
        layer, rank, position = (int(i) for i in np.argwhere(duplicate)[0])
        expert = int(local[layer, rank, position])
        slots = rank * local.shape[2] + np.flatnonzero(found.rows[layer].reshape(num_ranks, -1)[rank] == expert)
        raise FormatError(
            f"{place}: {found.labels[layer]}, rank {rank} holds expert {expert} in slots {slots.tolist()}: "
            f"{consequences[MapDefect.DUPLICATE]}; expected at most one replica on a rank"
        )
    return int(duplicate.sum())
