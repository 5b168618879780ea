"""The three arrays that DeepSeek's function returns, in a .npz file.

From deepseek-ai/EPLB@d52c72d5, ``eplb.py``: ``phy2log`` [L, P], ``log2phy`` [L, E, X] padded with -1, ``logcnt``
[L, E], all int64; slot j is on GPU ``j // (P / num_gpus)``, GPU g on node ``g // (num_gpus / num_nodes)``. DeepSeek
has no file; the names of the arrays are its variables. ``num_nodes`` and ``num_gpus``, the function's own
arguments, are stored beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats.array_file import load_npz, npz_bytes
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import Consequences, MapDefect, check_equal_ranks, check_no_empty_slots
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus
from eplb.formats.source_file import SourceFile

_MAPS = {"phy2log": 2, "log2phy": 3, "logcnt": 2}
_SCALARS = ("num_nodes", "num_gpus")
_PADDING = np.iinfo(np.int64).max  # sorts behind every slot

CONSEQUENCES: Final[Consequences] = {
    MapDefect.EMPTY_SLOT: "DeepSeek's maps have no empty slots",
    MapDefect.UNEVEN_RANKS: "DeepSeek's slot j is on GPU j // (slots / GPUs), so slots land on other ranks",
}


@final
@dataclass(frozen=True)
class Deepseek:
    """DeepSeek's phy2log, log2phy and logcnt."""

    name: ClassVar[str] = "deepseek"
    summary: ClassVar[str] = "phy2log, log2phy, logcnt as DeepSeek's rebalance_experts returns them, .npz"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def recognises(self, source: SourceFile) -> bool:
        """By the suffix."""
        return source.path.suffix in self.suffixes

    def parse(self, source: SourceFile) -> "DeepseekFile":
        """The arrays, names, types and dimensions checked."""
        arrays = _integer_arrays(source)
        return DeepseekFile(EngineFile(source.path, self.name, arrays["phy2log"]), arrays)

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """The archive; refuses empty slots and uneven ranks."""
        check_no_empty_slots(CONSEQUENCES, plan.placement)
        check_equal_ranks(CONSEQUENCES, plan.placement)
        topology, maps = plan.placement.topology, plan.placement.maps()
        if not topology.has_equal_nodes:
            raise FormatError(
                f"nodes of {topology.ranks_per_node} ranks: the {self.name} format holds nodes with equally many ranks"
            )
        arrays: dict[str, NDArray[np.int64]] = {
            "phy2log": maps.physical_to_logical_map,
            "log2phy": maps.logical_to_physical_map,
            "logcnt": maps.logical_replica_count,
            "num_nodes": np.array(topology.num_nodes, dtype=np.int64),
            "num_gpus": np.array(topology.num_ranks, dtype=np.int64),
        }
        return EncodedFile(npz_bytes(arrays), arrays["phy2log"], plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """No engine loads the file; the line of Python that reads the arrays."""
        return (
            "# no server loads it; in Python, for code written around deepseek-ai/EPLB's rebalance_experts:\n"
            f"""phy2log, log2phy, logcnt = (numpy.load("{path}")[k] for k in ("phy2log", "log2phy", "logcnt"))"""
        )


@final
@dataclass(frozen=True, eq=False)
class DeepseekFile:
    """A parsed file: the arrays by name."""

    file: EngineFile
    arrays: Mapping[str, NDArray[np.int64]]

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan, after a check that the three arrays hold the same map."""
        known, path = self.file.merged(hints), self.file.path
        phy2log, log2phy, logcnt = (self.arrays[name] for name in _MAPS)
        num_nodes, num_gpus = (_scalar(path, self.arrays, name) for name in _SCALARS)
        facts = FileFacts(num_ranks=num_gpus, num_nodes=num_nodes, num_experts=logcnt.shape[1])
        plan = self.file.plan(phy2log, facts, known)
        _check_same_map(path, plan, log2phy, logcnt)
        return plan


def _integer_arrays(source: SourceFile) -> dict[str, NDArray[np.int64]]:
    """The arrays of the file as int64, names, dimensions and types checked."""
    path, loaded = source.path, load_npz(source)
    for name in _MAPS:
        if name not in loaded:
            raise FormatError(f"{path}: array {name!r} is missing")
    for name, array in loaded.items():
        if name not in _MAPS and name not in _SCALARS:
            raise FormatError(f"{path}: unknown array {name!r}: expected {', '.join([*_MAPS, *_SCALARS])}")
        if not np.issubdtype(array.dtype, np.integer) or array.ndim != _MAPS.get(name, 0) or array.size == 0:
            raise FormatError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}: expected integers of "
                f"{_MAPS.get(name, 0)} dimensions"
            )
    return {name: array.astype(np.int64) for name, array in loaded.items()}


def _scalar(path: Path, arrays: Mapping[str, NDArray[np.int64]], name: str) -> int | None:
    if name not in arrays:
        return None
    value = int(arrays[name])
    if value < 1:
        raise FormatError(f"{path}: {name} = {value}: expected >= 1")
    return value


def _check_same_map(path: Path, plan: Plan, log2phy: NDArray[np.int64], logcnt: NDArray[np.int64]) -> None:
    """Refuse counts or slots that phy2log does not have; an expert's slots may be in any order."""
    counts = plan.placement.logical_replica_count
    if logcnt.shape != counts.shape or (logcnt != counts).any():
        layer, expert = _first(logcnt != counts) if logcnt.shape == counts.shape else (0, 0)
        raise FormatError(f"{path}: logcnt[layer {layer}, expert {expert}] does not count the slots of phy2log")
    own = plan.placement.logical_to_physical_map.astype(np.int64)
    width = max(own.shape[2], log2phy.shape[2])
    if log2phy.shape[:2] != own.shape[:2]:
        raise FormatError(f"{path}: log2phy has shape {log2phy.shape}: expected {own.shape[:2]} lists of slots")
    differs = (_sorted_slots(log2phy, width) != _sorted_slots(own, width)).any(axis=2)
    if differs.any():
        layer, expert = _first(differs)
        raise FormatError(
            f"{path}: log2phy[layer {layer}, expert {expert}] = {log2phy[layer, expert][:8].tolist()}: phy2log has it "
            f"in {own[layer, expert][own[layer, expert] >= 0][:8].tolist()}"
        )


def _sorted_slots(slots: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """[L, E, width] ascending, -1 moved behind the slots."""
    padded = np.full((*slots.shape[:2], width), _PADDING, dtype=np.int64)
    padded[:, :, : slots.shape[2]] = np.where(slots == -1, _PADDING, slots)
    return np.sort(padded, axis=2)


def _first(mask: NDArray[np.bool_]) -> tuple[int, int]:
    layer, expert = np.argwhere(mask)[0]
    return int(layer), int(expert)
