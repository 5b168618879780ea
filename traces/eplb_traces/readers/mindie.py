"""Reads MindIE's expert hotspot dumps: a folder with model_gen_config.json and prefill_{rank}.csv or decode_{rank}.csv.

``MINDIE_ENABLE_EXPERT_HOTPOT_GATHER`` and ``MINDIE_EXPERT_HOTPOT_DUMP_PATH`` make every NPU write them (MindIE 2.3.0,
"Generating Redundant Expert Deployment Tables"; msit's ``elb``): every eighth forward pass a matrix of totals since the
start, one row a MoE layer, one column a local slot, is appended without a header. The differences are the windows. As
in ``elb``, ranks that stopped later are cut to the shortest one. Columns are experts in rank order, or those of the
deployment table that ``eplb_expert_map_file`` names, looked for beside the dumps as well. ``*_topk_*`` and ``*_bak``
files are left alone; NPUs that hold only shared experts are refused.
"""

import re
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad, logical_counts
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.slot_counts import (
    agreeing_map,
    json_object,
    matrix_of_text,
    not_empty,
    positive_integer,
)

SUFFIXES: tuple[str, ...] = ()
RECOGNISED_BY = "a folder with model_gen_config.json and prefill_*.csv or decode_*.csv"
BECOMES = "load, one window a matrix of running totals"
REFUSES = "redundant slots without the deployment table; falling totals; NPUs with shared experts only"
CONFIG = "model_gen_config.json"
_FILE = re.compile(r"(prefill|decode)_(\d+)\.csv")


def recognises(path: Path) -> bool:
    """Take a folder with MindIE's description of the model, or with a rank's file."""
    return path.is_dir() and ((path / CONFIG).is_file() or any(_FILE.fullmatch(file.name) for file in path.iterdir()))


def read(path: Path, options: ReadOptions) -> Reading:
    """Put the ranks' slots side by side and take the differences of the totals, one window a matrix."""
    phase, files = _rank_files(path)
    with naming_place(CONFIG):
        config = json_object(path / CONFIG)
        shape = _shape(config, options)
    parts = []
    for file in files:
        with naming_place(file.name):
            parts.append(_totals(file, shape.num_layers))
    num_matrices = min(len(part) for part in parts)
    totals = np.concatenate([part[:num_matrices] for part in parts], axis=2)
    logical_of_slot = _slot_map(path, config, options, shape, [part.shape[2] for part in parts])
    tokens = logical_counts(np.diff(totals, axis=0, prepend=0), logical_of_slot, shape.num_experts)
    labels = [f"{phase}, matrix {number}" for number in range(num_matrices)]
    load = not_empty(ExpertLoad(tokens, labels=labels, shape=shape))
    form = "MindIE hotspot dump, running totals of slots made counts of experts"
    reading = Reading(content=load, form=form, used=agreeing_map(logical_of_slot, options))
    return reading_of_rows(reading, options, None)


def _rank_files(folder: Path) -> tuple[str, list[Path]]:
    """Return the phase and its files, rank 0 first, none missing."""
    found = {(m[1], int(m[2])): file for file in folder.iterdir() if (m := _FILE.fullmatch(file.name))}
    phases = sorted({phase for phase, _ in found})
    if not phases:
        raise InputError("the folder has no prefill_*.csv and no decode_*.csv")
    if len(phases) > 1:
        raise InputError("the folder has prefill_*.csv and decode_*.csv: expected one of them, each kind is a load")
    phase = phases[0]
    for rank in range(len(found)):
        if (phase, rank) not in found:
            raise InputError(f"no {phase}_{rank}.csv beside {len(found)} files: expected every rank from 0 on")
    return phase, [found[phase, rank] for rank in range(len(found))]


def _shape(config: dict[str, object], options: ReadOptions) -> ModelShape:
    num_layers = positive_integer(config, "num_moe_layers")
    num_experts = positive_integer(config, "num_of_experts")
    if options.num_experts not in (None, num_experts):
        raise InputError(f"num_experts = {options.num_experts}: the file says {num_experts}")
    if config.get("num_dangling_shared_experts", 0) not in (0, -1):
        raise InputError(
            f"$.num_dangling_shared_experts = {config['num_dangling_shared_experts']!r}: expected 0, no NPUs that hold "
            "only shared experts"
        )
    selected = config.get("num_of_selected_experts")
    top_k = selected[0] if isinstance(selected, list) and selected else selected
    return ModelShape(num_layers, num_experts, top_k if isinstance(top_k, int) else None)


def _totals(file: Path, num_layers: int) -> NDArray[np.float64]:
    """Return [matrices, L, slots of the rank]; a last matrix that is not whole is left out."""
    rows = matrix_of_text(file, ",")
    num_matrices = len(rows) // num_layers
    if num_matrices == 0:
        raise InputError(f"has {len(rows)} rows: expected at least {num_layers}, one a MoE layer")
    totals = rows[: num_matrices * num_layers].reshape(num_matrices, num_layers, -1)
    falling = np.diff(totals, axis=0) < 0
    if falling.any():
        matrix, layer, slot = (int(i) for i in np.argwhere(falling)[0])
        raise InputError(
            f"matrix {matrix + 1}, layer {layer}, slot {slot} = {totals[matrix + 1, layer, slot]:.0f}: expected at "
            f"least {totals[matrix, layer, slot]:.0f} as before, totals never fall; two runs in one file?"
        )
    return totals


def _slot_map(
    folder: Path, config: dict[str, object], options: ReadOptions, shape: ModelShape, slots: list[int]
) -> NDArray[np.int64]:
    """Return [L, P] the expert of each slot of all ranks."""
    named = config.get("eplb_expert_map_file")
    told = options.recorded_under
    if not named and told is not None:
        if told.shape != (shape.num_layers, sum(slots)) or told.min() < 0 or told.max() >= shape.num_experts:
            raise InputError(
                f"recorded_under (--recorded-under) has the shape {told.shape}: expected {shape.num_layers} layers x "
                f"{sum(slots)} slots of ids below {shape.num_experts}"
            )
        return told.astype(np.int64)
    if not named:
        if sum(slots) != shape.num_experts:
            raise InputError(
                f"{len(slots)} ranks have {sum(slots)} slots: expected {shape.num_experts}, one for each expert, since "
                f"{CONFIG} names no eplb_expert_map_file; give the map in force as recorded_under (--recorded-under)"
            )
        return np.tile(np.arange(shape.num_experts), (shape.num_layers, 1))
    path = Path(str(named))
    beside = folder / path.name
    with naming_place(beside if beside.is_file() else path):
        return _deployed(json_object(beside if beside.is_file() else path), shape, slots)


def _deployed(table: dict[str, object], shape: ModelShape, slots: list[int]) -> NDArray[np.int64]:
    """Read a deployment table: ``layer_list[].device_list[].device_expert[]``, layers and devices in list order."""
    try:
        layers = cast(list[dict[str, list[dict[str, list[int]]]]], table["layer_list"])
        rows = [[device["device_expert"] for device in layer["device_list"]] for layer in layers]
        lengths = [[len(experts) for experts in row] for row in rows]
        flat = np.array([[expert for experts in row for expert in experts] for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a deployment table with layer_list, device_list and device_expert: {error}") from error
    if lengths != [slots] * shape.num_layers:
        raise InputError(
            f"has {len(rows)} layers, the first with {lengths[0] if lengths else []} experts on its devices: expected "
            f"{shape.num_layers} layers of {slots}, as the dumps have columns"
        )
    if flat.dtype.kind != "i" or flat.min() < 0 or flat.max() >= shape.num_experts:
        raise InputError(f"has an id outside 0 to {shape.num_experts - 1}")
    return flat.astype(np.int64)
