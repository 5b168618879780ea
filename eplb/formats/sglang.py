"""SGLang's expert location file, ``--init-expert-location``.

From the loader (sglang 0.5.23, ``srt/eplb/expert_location.py``): a ``.json`` or ``.pt`` file holds one object with
the one key ``physical_to_logical_map``, a list of rows ``[num_hidden_layers][slots]``. Its keys become keyword
arguments, so any further key is a TypeError. Row i belongs to layer i of the whole model: dense layers have a row
too, never read but checked like the others. A slot j is on rank ``j // (slots / ep_size)``. An object with
``logical_count`` is a load, no placement.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError, InputError, MissingExtraError
from eplb.formats.engine_file import EngineFile, FileFacts
from eplb.formats.engine_limits import Consequences, MapDefect, check_equal_ranks, check_no_empty_slots
from eplb.formats.json_fields import as_int_rows, as_object, emit_json
from eplb.formats.loader_map import LoaderMap, numbered_layers
from eplb.formats.protocol import EncodedFile, ReadHints, RecordStatus, check_suffix
from eplb.formats.quoting import shell_word
from eplb.formats.source_file import SourceFile
from eplb_traces import ModelShape
from eplb_traces.files.torch_file import read_torch
from eplb_traces.model_shape import required_hidden_layers

_KEY = "physical_to_logical_map"

ABSENT_EXPERT: Final = 0
"""What SGLang's `elasticity_aware` algorithms write into every slot of a rank that is not active."""

# Tried on SGLang 0.5.23's own loader; uneven ranks follow from how it cuts the list.
CONSEQUENCES: Final[Consequences] = {
    MapDefect.MISSING_EXPERT: "SGLang crashes with a ZeroDivisionError",
    MapDefect.ID_TOO_LARGE: "SGLang crashes with an IndexError",
    MapDefect.EMPTY_SLOT: "SGLang reads -1 as the last expert",
    MapDefect.INDIVISIBLE: "SGLang crashes with an AssertionError without a message",
    MapDefect.UNEVEN_RANKS: "SGLang cuts the list into equal parts, so slots land on other ranks",
}


@final
@dataclass(frozen=True)
class Sglang:
    """SGLang's ``{"physical_to_logical_map": [num_hidden_layers][slots]}``."""

    name: ClassVar[str] = "sglang"
    summary: ClassVar[str] = "SGLang --init-expert-location, JSON or .pt: one row for every layer, dense ones included"
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".pt")
    consequences: ClassVar[Consequences] = CONSEQUENCES

    def recognises(self, source: SourceFile) -> bool:
        """By the suffix ``.pt``, or by its key, also that of a load, which `parse` refuses by name."""
        members = source.json_members
        has_map = _KEY in members and "format" not in members
        return source.path.suffix == ".pt" or has_map or "logical_count" in members

    def parse(self, source: SourceFile) -> "SglangFile":
        """All rows, dense layers' included."""
        place = f"{source.path}: $"
        fields = as_object(_load_tensors(source) if source.path.suffix == ".pt" else source.json, place)
        if "logical_count" in fields:
            raise FormatError(f"{source.path}: holds logical_count, a load: plan for it, or give a file with {_KEY}")
        if _KEY not in fields:
            raise FormatError(f"{source.path}: key {_KEY!r} is missing")
        for key in fields:
            if key != _KEY:
                raise FormatError(
                    f"{source.path}: extra key {key!r}: SGLang takes every key for an argument and crashes with a "
                    f"TypeError; expected {_KEY} alone"
                )
        return SglangFile(EngineFile(source.path, self.name, as_int_rows(fields[_KEY], f"{place}.{_KEY}")))

    def encode(self, plan: Plan, suffix: str) -> EncodedFile:
        """JSON or .pt; refuses empty slots, uneven ranks, and a model whose dense layers are not known.

        Absent ranks have columns too, as SGLang's elastic expert parallelism keeps their number.
        """
        check_no_empty_slots(CONSEQUENCES, plan.placement)
        check_equal_ranks(CONSEQUENCES, plan.placement)
        rows = _with_absent_ranks(_all_rows(plan), plan)
        content = _tensor_bytes(rows) if suffix == ".pt" else emit_json({_KEY: rows.tolist()})
        return EncodedFile(content, rows, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """SGLang's flags for the file, the redundancy and the ranks."""
        placement, num_ids = plan.placement, plan.placement.topology.num_ranks + len(plan.absent_ranks)
        num_columns = placement.num_slots // placement.topology.num_ranks * num_ids
        return (
            "# SGLang 0.5.23\n"
            f"--init-expert-location {shell_word(path)} --ep-size {num_ids} "
            f"--ep-num-redundant-experts {num_columns - placement.num_experts}"
        )


@final
@dataclass(frozen=True, eq=False)
class SglangFile:
    """A parsed file: one row for each layer of the model. Its integers are all that the file holds."""

    file: EngineFile

    @property
    def record_status(self) -> RecordStatus:
        """See `ParsedFile.record_status`."""
        return self.file.sidecar.status

    def plan(self, hints: ReadHints) -> Plan:
        """The plan; only sidecar and hints tell which rows are dense layers', without them all are MoE rows."""
        known, rows = self.file.merged(hints), self._present_columns()
        if known.shape is None:
            return self.file.plan(rows, FileFacts(), known)
        moe_rows = _moe_rows(rows.shape[0], known.shape, str(self.file.path))
        facts = FileFacts(num_hidden_layers=rows.shape[0] if known.shape.moe_layer_ids is not None else None)
        return self.file.plan(rows[moe_rows], facts, known)

    def _present_columns(self) -> NDArray[np.int64]:
        """The rows without the columns of ranks that the sidecar names as absent."""
        rows, record = self.file.digested, self.file.sidecar.provenance
        if record is None or not record.absent_ranks:
            return rows
        num_ids = record.topology.num_ranks + len(record.absent_ranks)
        if rows.shape[1] % num_ids:
            raise FormatError(
                f"{self.file.path}: {rows.shape[1]} columns: expected a multiple of {num_ids}, the ranks of the "
                f"sidecar with its absent ranks {list(record.absent_ranks)}"
            )
        by_rank = rows.reshape(rows.shape[0], num_ids, -1)
        return np.delete(by_rank, record.absent_ranks, axis=1).reshape(rows.shape[0], -1)

    def loader_map(self, num_ranks: int, shape: ModelShape | None) -> LoaderMap:
        """All rows, dense layers' too: SGLang builds its tables from them as from the others."""
        check_suffix(Sglang(), self.file.path)
        rows = self.file.digested
        notes: tuple[str, ...] = ()
        if shape is None:
            notes = (f"{rows.shape[0]} rows: expected one for each layer of the model, dense ones counted",)
        else:
            _moe_rows(rows.shape[0], shape, str(self.file.path))
        return LoaderMap(rows, numbered_layers(rows.shape[0]), None, notes)


def _moe_rows(num_rows: int, shape: ModelShape, place: str) -> NDArray[np.int64]:
    """[L] rows of a file of `num_rows` that belong to MoE layers.

    Raises
    ------
    FormatError
        If the model has another number of layers, or the shape does not tell which are dense.
    """
    num_hidden = shape.num_hidden_layers
    if shape.moe_layer_ids is None:
        if num_rows != shape.num_layers and num_rows == num_hidden:
            raise FormatError(
                f"{place}: {num_rows} rows for {shape.num_layers} MoE layers: give --moe-layers and --num-experts"
            )
        ids = np.arange(shape.num_layers)
        num_hidden = shape.num_layers if num_hidden is None else num_hidden
    else:
        ids = np.array(shape.moe_layer_ids)
        num_hidden = max(num_rows, int(ids[-1]) + 1) if num_hidden is None else num_hidden
    if num_rows != num_hidden:
        raise FormatError(
            f"{place}: {num_rows} rows, one a layer of the whole model, dense layers counted: expected {num_hidden}"
        )
    return ids


def _all_rows(plan: Plan) -> NDArray[np.int64]:
    """[num_hidden_layers, P]: each MoE layer's row at its place; dense layers have the first MoE layer's row."""
    phy2log = plan.placement.physical_to_logical_map.astype(np.int64)
    try:
        ids, num_hidden = required_hidden_layers(Sglang.name, plan.shape)
    except InputError as error:
        raise FormatError(str(error)) from error
    rows = np.repeat(phy2log[:1], num_hidden, axis=0)
    rows[list(ids)] = phy2log
    return rows


def _with_absent_ranks(rows: NDArray[np.int64], plan: Plan) -> NDArray[np.int64]:
    """[num_hidden_layers, columns] the rows, and the columns of absent ranks filled with `ABSENT_EXPERT`."""
    if not plan.absent_ranks:
        return rows
    num_rows, num_ranks = rows.shape[0], plan.placement.topology.num_ranks
    wide = np.full((num_rows, num_ranks + len(plan.absent_ranks), rows.shape[1] // num_ranks), ABSENT_EXPERT)
    wide[:, list(plan.rank_ids)] = rows.reshape(num_rows, num_ranks, -1)
    return wide.reshape(num_rows, -1)


def _load_tensors(source: SourceFile) -> object:
    """The object in a .pt file, tensors of integers turned into lists."""
    try:
        loaded = read_torch(io.BytesIO(source.content))
    except InputError as error:
        raise FormatError(f"{source.path}: not a .pt file of plain tensors: {error}") from error
    if not isinstance(loaded, dict):
        return loaded
    return {key: item.tolist() if isinstance(item, np.ndarray) else item for key, item in loaded.items()}


def _tensor_bytes(rows: NDArray[np.int64]) -> bytes:
    """The bytes of a .pt file."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("writing .pt files", "runtime") from error
    stream = io.BytesIO()
    torch.save({_KEY: torch.from_numpy(np.ascontiguousarray(rows))}, stream)
    return stream.getvalue()
