"""Knows whether an engine would load a placement file and do what it says; writes nothing and plans nothing.

It looks at the file as the engine's loader does, before any Placement is made of it, and says of the first thing
wrong where it is and what the engine would have done with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import EMPTY_SLOT
from eplb.errors import FormatError, UnknownNameError
from eplb.formats import ascend, omni, sglang, vllm
from eplb.formats.engine_limits import EFFECTS, Fault, check_suffix
from eplb.formats.flat_yaml import read_assignments
from eplb_traces import ModelShape

NO_RELEASE: Final = "the form is that of an open pull request; no vLLM release up to 0.33.0 loads such a file"


@final
@dataclass(frozen=True)
class EngineReport:
    """What a file holds that its engine would load. `str` of it is the sentence for the user.

    `num_duplicates` counts copies of an expert beside another one on the same rank, which the engine loads and which do
    nothing for balance; `notes` say what could not be checked, and why.
    """

    engine: str
    num_layers: int
    num_experts: int
    num_slots: int
    num_ranks: int
    num_duplicates: int
    notes: tuple[str, ...]

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one for each expert, in the fullest layer."""
        return self.num_slots - self.num_experts

    def __str__(self) -> str:
        facts = (
            f"{self.engine} would load it: {self.num_layers} layers, {self.num_experts} experts + {self.num_redundant} "
            f"redundant = {self.num_slots} slots on {self.num_ranks} ranks of {self.num_slots // self.num_ranks}, "
            f"{self.num_duplicates} duplicates on a rank"
        )
        return "\n".join([facts, *(f"note: {note}" for note in self.notes)])


@final
@dataclass(frozen=True)
class _RawMap:
    """A file as its loader sees it.

    `rows` [L, P] in flat slot order; `labels` [L] names the layers in messages; `num_experts` where the file says it;
    with `may_have_empty_slots` a rank ends in -1 in layers that have fewer redundant experts than others.
    """

    rows: NDArray[np.int64]
    labels: tuple[str, ...]
    num_experts: int | None
    notes: tuple[str, ...]
    may_have_empty_slots: bool = False


@final
@dataclass(frozen=True)
class _Question:
    """What the user says about the file."""

    path: Path
    num_ranks: int
    shape: ModelShape | None


def check_file(
    path: str | Path,
    engine: str,
    num_ranks: int,
    num_experts: int | None = None,
    shape: ModelShape | None = None,
) -> EngineReport:
    """Refuse a file that the engine would die of or misread.

    Parameters
    ----------
    path
        A placement file in the engine's own dialect.
    engine
        One of ENGINES.
    num_ranks
        Expert-parallel ranks that the engine will have.
    num_experts
        Logical experts of a layer; without it missing experts at the end of the ids cannot be seen.
    shape
        The model; without it missing layers cannot be seen.

    Raises
    ------
    FormatError
        Naming layer, rank, slot and expert, and what the engine would do.
    UnknownNameError
        For a name that is no engine's.
    """
    if engine not in _READERS:
        raise UnknownNameError("engine", engine, _READERS)
    if num_ranks < 1:
        raise FormatError(f"ranks = {num_ranks}: expected >= 1")
    raw = _READERS[engine](_Question(Path(path), num_ranks, shape))
    experts, notes = _number_of_experts(Path(path), raw, num_experts, shape)
    _check_ids(engine, f"{path}", raw, experts)
    _check_ranks(engine, f"{path}", raw, num_ranks)
    _check_every_expert(engine, f"{path}", raw, experts)
    duplicates = _count_duplicates(engine, f"{path}", raw, num_ranks)
    return EngineReport(
        engine, raw.rows.shape[0], experts, raw.rows.shape[1], num_ranks, duplicates, (*raw.notes, *notes)
    )


def _number_of_experts(
    path: Path, raw: _RawMap, num_experts: int | None, shape: ModelShape | None
) -> tuple[int, tuple[str, ...]]:
    """The experts of a layer, from the file, the user or, with a note, the largest id."""
    known = [n for n in (raw.num_experts, num_experts, None if shape is None else shape.num_experts) if n is not None]
    if len(set(known)) > 1:
        raise FormatError(f"{path}: {known[0]} experts, but {known[1]} were given: expected the same")
    if known:
        return known[0], ()
    found = int(raw.rows.max()) + 1
    note = f"{found} experts by the largest id; give --experts to see whether the last ones are missing"
    return max(found, 1), (note,)


def _check_ids(engine: str, place: str, raw: _RawMap, num_experts: int) -> None:
    wrong = (raw.rows < 0) | (raw.rows >= num_experts)
    if raw.may_have_empty_slots:
        wrong &= raw.rows != EMPTY_SLOT
    if wrong.any():
        layer, slot = (int(i) for i in np.argwhere(wrong)[0])
        found = int(raw.rows[layer, slot])
        fault = Fault.ID_TOO_LARGE if found >= num_experts else Fault.EMPTY_SLOT
        what = "is no expert" if found < -1 or found >= num_experts else "is an empty slot"
        raise FormatError(
            f"{place}: {raw.labels[layer]}, slot {slot} = {found} {what}: {EFFECTS[engine][fault]}; "
            f"expected 0 <= id < {num_experts}"
        )


def _check_ranks(engine: str, place: str, raw: _RawMap, num_ranks: int) -> None:
    if raw.rows.shape[1] % num_ranks:
        raise FormatError(
            f"{place}: {raw.rows.shape[1]} slots a layer on {num_ranks} ranks: {EFFECTS[engine][Fault.INDIVISIBLE]}; "
            f"expected a multiple of {num_ranks}"
        )


def _check_every_expert(engine: str, place: str, raw: _RawMap, num_experts: int) -> None:
    for label, row in zip(raw.labels, raw.rows, strict=True):
        counts = np.bincount(row[row >= 0], minlength=num_experts)
        if not counts.all():
            raise FormatError(
                f"{place}: {label}: expert {int(np.argmin(counts))} has no slot: "
                f"{EFFECTS[engine][Fault.MISSING_EXPERT]}; expected every expert in every layer"
            )


def _count_duplicates(engine: str, place: str, raw: _RawMap, num_ranks: int) -> int:
    """Slots whose expert an earlier slot of the rank holds; refused where the engine loses one."""
    num_layers = raw.rows.shape[0]
    local = np.sort(raw.rows.reshape(num_layers, num_ranks, -1), axis=2)
    doubled = (local[:, :, 1:] == local[:, :, :-1]) & (local[:, :, 1:] >= 0)
    if doubled.any() and Fault.DUPLICATE in EFFECTS[engine]:
        layer, rank, position = (int(i) for i in np.argwhere(doubled)[0])
        expert = int(local[layer, rank, position])
        slots = rank * local.shape[2] + np.flatnonzero(raw.rows[layer].reshape(num_ranks, -1)[rank] == expert)
        raise FormatError(
            f"{place}: {raw.labels[layer]}, rank {rank} holds expert {expert} in slots {slots.tolist()}: "
            f"{EFFECTS[engine][Fault.DUPLICATE]}; expected at most one copy on a rank"
        )
    return int(doubled.sum())


def _read_sglang(asked: _Question) -> _RawMap:
    """All rows, dense layers' too: SGLang builds its tables from them as from the others."""
    check_suffix("sglang", asked.path, sglang.Sglang.suffixes)
    rows = sglang.read_rows(asked.path)
    notes: tuple[str, ...] = ()
    if asked.shape is None:
        notes = (f"{rows.shape[0]} rows: expected one for each layer of the model, dense ones counted",)
    else:
        sglang.moe_rows(rows.shape[0], asked.shape, str(asked.path))
    return _RawMap(rows, _numbered(rows.shape[0]), None, notes)


def _read_vllm(asked: _Question) -> _RawMap:
    raw = vllm.read_map(asked.path)
    if raw.rows.ndim == 1:
        return _RawMap(raw.rows[None], ("every layer",), raw.num_experts, (NO_RELEASE, "one list for all layers"))
    notes = (NO_RELEASE, *_check_layers(asked, raw.rows.shape[0]))
    return _RawMap(raw.rows, _numbered(raw.rows.shape[0]), raw.num_experts, notes)


def _read_ascend(asked: _Question) -> _RawMap:
    check_suffix("ascend", asked.path, ascend.Ascend.suffixes)
    devices = ascend.read_devices(asked.path)
    _check_same_ranks(asked, devices.shape[1], "device_list")
    notes = _check_layers(asked, devices.shape[0])
    return _RawMap(devices.reshape(devices.shape[0], -1), _numbered(devices.shape[0]), None, notes)


def _read_trtllm(asked: _Question) -> _RawMap:
    layer_ids, rows = read_assignments(asked.path)
    expected = None if asked.shape is None else asked.shape.moe_layer_ids
    if expected is not None and layer_ids != expected:
        missing, extra = sorted(set(expected) - set(layer_ids)), sorted(set(layer_ids) - set(expected))
        what = f"layer {missing[0]} has no list: TensorRT-LLM dies of a KeyError" if missing else ""
        what = what or f"layer {extra[0]} is no MoE layer: TensorRT-LLM never reads its list"
        raise FormatError(f"{asked.path}: {what}; expected one list for each absolute id of a MoE layer")
    notes = (
        _check_layers(asked, rows.shape[0])
        if expected is not None
        else (f"layers {layer_ids[0]} to {layer_ids[-1]}: expected the absolute ids of all MoE layers",)
    )
    return _RawMap(rows, tuple(f"layer {i}" for i in layer_ids), None, notes)


def _read_omni(asked: _Question) -> _RawMap:
    """The pattern, each rank filled with its experts and, up to the fullest layer, with -1."""
    pattern = omni.read_pattern(asked.path)
    _check_same_ranks(asked, pattern.shape[0], "the array")
    omni.check_equal_experts(str(asked.path), pattern)
    notes = _check_layers(asked, pattern.shape[1])
    rows = omni.lay_out(pattern, pattern.sum(axis=2).max(axis=1))
    if rows.shape[1] == 0:
        raise FormatError(f"{asked.path}: every entry is 0: expected every expert in every layer")
    return _RawMap(rows, _numbered(pattern.shape[1]), pattern.shape[2], notes, may_have_empty_slots=True)


def _check_same_ranks(asked: _Question, found: int, where: str) -> None:
    if found != asked.num_ranks:
        raise FormatError(f"{asked.path}: {where} has {found} ranks: expected {asked.num_ranks}")


def _check_layers(asked: _Question, found: int) -> tuple[str, ...]:
    if asked.shape is None:
        return (f"{found} layers: expected as many as the model has MoE layers",)
    if found != asked.shape.num_layers:
        raise FormatError(f"{asked.path}: {found} layers: expected {asked.shape.num_layers} MoE layers")
    return ()


def _numbered(num_layers: int) -> tuple[str, ...]:
    return tuple(f"layer {i}" for i in range(num_layers))


_READERS: Final[dict[str, Callable[[_Question], _RawMap]]] = {
    "sglang": _read_sglang,
    "vllm": _read_vllm,
    "ascend": _read_ascend,
    "trtllm": _read_trtllm,
    "omni": _read_omni,
}
ENGINES: Final = tuple(_READERS)
