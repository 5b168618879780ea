"""Reads and writes calibrations as JSON; every error names the file and the JSON path.

::

    {"format": "eplb-calibration", "version": 1, "gpu": "NVIDIA H200", "provenance": "measured", "machine": "...",
     "memory_bytes": 141e9,
     "links": {"intra_node": {"gbps": .., "latency_s": .., "source": "measured: .."}, "inter_node": {..}},
     "ffn": {"bf16": {"kernel": "..", "fit": {"num_points": .., "median_error": .., "p95_error": .., "shapes": [..]},
                      "regimes": [{"most_rows_per_slot": 128, "tile_rows": 128, .., "fixed_s": ..}, ..]}}}

The last regime of a type has no bound: its ``most_rows_per_slot`` is null. ``fit`` is null for a formula.
"""

from dataclasses import asdict, fields
from pathlib import Path

from eplb.cost.calibration import Calibration, Provenance
from eplb.cost.grouped_ffn import FitQuality, GroupedFfn, TileRegime
from eplb.cost.links import Link, Links
from eplb.errors import FormatError
from eplb.formats.json_fields import (
    as_fields,
    as_int,
    as_list,
    as_number,
    as_object,
    as_text,
    emit_json,
    error_context,
    load_json,
)
from eplb_traces.files.atomic_file import atomic_write

_KIND, _VERSION = "eplb-calibration", 1
_KEYS = ("format", "version", "gpu", "provenance", "machine", "memory_bytes", "links", "ffn")
_WHOLE_NUMBERS = ("tile_rows", "tile_columns", "tiles_at_once")


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises
    ------
    FormatError
        With the JSON path of what is missing, unknown or out of range.
    """
    place = f"{path}: $"
    fields_ = as_object(load_json(path), place)
    if fields_.get("format") != _KIND:
        raise FormatError(f"{place}.format = {fields_.get('format')!r}: expected {_KIND!r}")
    if fields_.get("version") != _VERSION:
        raise FormatError(f"{place}.version = {fields_.get('version')!r}: expected {_VERSION}")
    fields_ = as_fields(fields_, place, _KEYS)
    ffn = as_object(fields_["ffn"], f"{place}.ffn")
    with error_context(place):
        return Calibration(
            gpu=as_text(fields_["gpu"], f"{place}.gpu"),
            provenance=Provenance.named(as_text(fields_["provenance"], f"{place}.provenance")),
            machine=as_text(fields_["machine"], f"{place}.machine"),
            ffn={name: _ffn(value, f"{place}.ffn.{name}") for name, value in ffn.items()},
            links=_links(fields_["links"], f"{place}.links"),
            memory_bytes=as_number(fields_["memory_bytes"], f"{place}.memory_bytes"),
        )


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file; equal calibrations give equal bytes.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    content = {
        "format": _KIND,
        "version": _VERSION,
        "gpu": calibration.gpu,
        "provenance": str(calibration.provenance),
        "machine": calibration.machine,
        "memory_bytes": calibration.memory_bytes,
        "links": {
            "intra_node": asdict(calibration.links.intra_node),
            "inter_node": asdict(calibration.links.inter_node),
        },
        "ffn": {name: _ffn_fields(ffn) for name, ffn in calibration.ffn.items()},
    }
    atomic_write(path, emit_json(content))


def _ffn_fields(ffn: GroupedFfn) -> dict[str, object]:
    regimes = [asdict(regime) for regime in ffn.regimes]
    regimes[-1]["most_rows_per_slot"] = None
    return {
        "kernel": ffn.kernel,
        "fit": None if ffn.fit is None else {**asdict(ffn.fit), "shapes": list(ffn.fit.shapes)},
        "regimes": regimes,
    }


def _ffn(value: object, place: str) -> GroupedFfn:
    parts = as_fields(value, place, ("kernel", "fit", "regimes"))
    regimes = as_list(parts["regimes"], f"{place}.regimes")
    with error_context(place):
        return GroupedFfn(
            kernel=as_text(parts["kernel"], f"{place}.kernel"),
            regimes=tuple(_regime(one, f"{place}.regimes[{i}]") for i, one in enumerate(regimes)),
            fit=None if parts["fit"] is None else _fit(parts["fit"], f"{place}.fit"),
        )


def _regime(value: object, place: str) -> TileRegime:
    names = tuple(field.name for field in fields(TileRegime))
    parts = as_fields(value, place, names)
    bound = parts["most_rows_per_slot"]
    whole = {name: as_int(parts[name], f"{place}.{name}", 1) for name in _WHOLE_NUMBERS}
    rest = [name for name in names if name not in (*_WHOLE_NUMBERS, "most_rows_per_slot")]
    numbers = {name: as_number(parts[name], f"{place}.{name}") for name in rest}
    most = float("inf") if bound is None else as_number(bound, f"{place}.most_rows_per_slot")
    with error_context(place):
        return TileRegime(most_rows_per_slot=most, **whole, **numbers)  # type: ignore[arg-type]  # whole and numbers are told apart above


def _fit(value: object, place: str) -> FitQuality:
    parts = as_fields(value, place, tuple(field.name for field in fields(FitQuality)))
    shapes = as_list(parts["shapes"], f"{place}.shapes")
    return FitQuality(
        num_points=as_int(parts["num_points"], f"{place}.num_points", 1),
        median_error=as_number(parts["median_error"], f"{place}.median_error"),
        p95_error=as_number(parts["p95_error"], f"{place}.p95_error"),
        shapes=tuple(as_text(one, f"{place}.shapes[{i}]") for i, one in enumerate(shapes)),
    )


def _links(value: object, place: str) -> Links:
    parts = as_fields(value, place, ("intra_node", "inter_node"))
    return Links(_link(parts["intra_node"], f"{place}.intra_node"), _link(parts["inter_node"], f"{place}.inter_node"))


def _link(value: object, place: str) -> Link:
    parts = as_fields(value, place, ("gbps", "latency_s", "source"))
    with error_context(place):
        return Link(
            as_number(parts["gbps"], f"{place}.gbps"),
            as_number(parts["latency_s"], f"{place}.latency_s"),
            as_text(parts["source"], f"{place}.source"),
        )
