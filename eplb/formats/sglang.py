"""SGLang's expert location file, ``--init-expert-location``.

From the loader (sglang 0.5.23, ``srt/eplb/expert_location.py``): a ``.json`` or ``.pt`` file holds one object with
the one key ``physical_to_logical_map``, a list of rows ``[num_hidden_layers][slots]``. Its keys become keyword
arguments, so any further key is a TypeError. Row i belongs to layer i of the whole model: dense layers have a row
too, never read but checked like the others. A slot j is on rank ``j // (slots / ep_size)``. An object with
``logical_count`` is a load, no placement.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import FormatError, MissingExtraError
from eplb.formats.engine_file import FileFacts, make_plan, open_foreign
from eplb.formats.engine_limits import check_equal_ranks, check_no_empty_slots, check_suffix
from eplb.formats.json_fields import as_int_rows, as_object, emit_json, load_json, read_bytes
from eplb.formats.protocol import ReadHints
from eplb.formats.sidecar import write_with_sidecar
from eplb_traces import ModelShape

_KEY = "physical_to_logical_map"


@final
@dataclass(frozen=True)
class Sglang:
    """SGLang's ``{"physical_to_logical_map": [num_hidden_layers][slots]}``."""

    name: ClassVar[str] = "sglang"
    summary: ClassVar[str] = "SGLang --init-expert-location, JSON or .pt: one row for every layer, dense ones included"
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".pt")

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan; which rows are dense layers' only the sidecar or a shape hint says, without all are MoE rows."""
        raw = read_rows(path)
        file = open_foreign(path, self.name, raw, hints)
        if file.hints.shape is None:
            return make_plan(file, raw, FileFacts())
        rows = moe_rows(raw.shape[0], file.hints.shape, str(path))
        facts = FileFacts(num_hidden_layers=raw.shape[0] if file.hints.shape.moe_layer_ids is not None else None)
        return make_plan(file, raw[rows], facts)

    def check(self, plan: Plan) -> None:
        """Refuse empty slots, uneven ranks, and a model whose dense layers are not known."""
        check_no_empty_slots(self.name, plan.placement)
        check_equal_ranks(self.name, plan.placement)
        _all_rows(plan)

    def write(self, plan: Plan, path: Path) -> None:
        """Write JSON or .pt, as the suffix says, and the sidecar."""
        check_suffix(self.name, path, self.suffixes)
        self.check(plan)
        rows = _all_rows(plan)
        content = _tensor_file(rows) if path.suffix == ".pt" else emit_json({_KEY: rows.tolist()})
        write_with_sidecar(path, content, rows, self.name, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """SGLang's flags for the file, the redundancy and the ranks."""
        placement = plan.placement
        return (
            "# SGLang 0.5.23\n"
            f"--init-expert-location {path} --ep-size {placement.topology.num_ranks} "
            f"--ep-num-redundant-experts {placement.num_slots - placement.num_experts}"
        )


def read_rows(path: Path) -> NDArray[np.int64]:
    """[num_hidden_layers, P] rows of a file, dense ones included, ids not yet looked at."""
    fields = as_object(_load_tensor_file(path) if path.suffix == ".pt" else load_json(path), f"{path}: $")
    if "logical_count" in fields:
        raise FormatError(f"{path}: holds logical_count, a load: plan for it, or give a file with {_KEY}")
    if _KEY not in fields:
        raise FormatError(f"{path}: key {_KEY!r} is missing")
    for key in fields:
        if key != _KEY:
            raise FormatError(
                f"{path}: extra key {key!r}: SGLang takes every key for an argument and dies of a TypeError; "
                f"expected {_KEY} alone"
            )
    return as_int_rows(fields[_KEY], f"{path}: $.{_KEY}")


def moe_rows(num_rows: int, shape: ModelShape, place: str) -> NDArray[np.int64]:
    """[L] rows of a file of `num_rows` that belong to MoE layers.

    Raises
    ------
    FormatError
        If the model has another number of layers, or does not say which are dense.
    """
    num_hidden = shape.num_hidden_layers
    if shape.moe_layer_ids is None:
        if num_rows != shape.num_layers and num_rows == num_hidden:
            raise FormatError(
                f"{place}: {num_rows} rows for {shape.num_layers} MoE layers: give --moe-layers and --experts"
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
    """[num_hidden_layers, P]: each MoE layer's row at its place, dense layers filled with the first MoE layer's."""
    shape, phy2log = plan.shape, plan.placement.physical_to_logical_map.astype(np.int64)
    ids, num_hidden = shape.moe_layer_ids, shape.num_hidden_layers
    if ids is None and num_hidden in (None, shape.num_layers):
        return phy2log
    if ids is None:
        raise FormatError(
            f"sglang files have a row for each of {num_hidden} layers and the plan does not say which "
            f"{shape.num_layers} are MoE layers: give --moe-layers"
        )
    if num_hidden is None:
        raise FormatError(
            "sglang files have a row for every layer, dense ones included, and the plan does not say how many the "
            "model has: give --hidden-layers"
        )
    rows = np.repeat(phy2log[:1], num_hidden, axis=0)
    rows[list(ids)] = phy2log
    return rows


def _load_tensor_file(path: Path) -> object:
    """The object in a .pt file, tensors of integers turned into lists."""
    content = read_bytes(path)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("reading .pt files", "runtime") from error
    try:
        loaded: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise FormatError(f"{path}: not a .pt file of plain tensors: {first_line}") from error
    if not isinstance(loaded, dict):
        return loaded
    return {key: item.tolist() if isinstance(item, torch.Tensor) else item for key, item in loaded.items()}


def _tensor_file(rows: NDArray[np.int64]) -> bytes:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("writing .pt files", "runtime") from error
    stream = io.BytesIO()
    torch.save({_KEY: torch.from_numpy(np.ascontiguousarray(rows))}, stream)
    return stream.getvalue()
