"""Converts a ModelShape to JSON and back, as stored in eplb's own files."""

from dataclasses import asdict

from eplb_traces.errors import InputError
from eplb_traces.model_shape import ModelShape

_OPTIONAL = ("top_k", "top_k_groups", "num_hidden_layers")
_REQUIRED = ("num_layers", "num_experts", "num_expert_groups")
_KEYS = {*_OPTIONAL, *_REQUIRED, "moe_layer_ids"}
_ONLY_IF_KNOWN = ("name", "expert_bytes")


def shape_to_json(shape: ModelShape) -> dict[str, object]:
    """Return the fields of `shape` by name, ready for `json.dumps`; the model's name and bytes only if known."""
    return {name: value for name, value in asdict(shape).items() if name not in _ONLY_IF_KNOWN or value is not None}


def shape_from_json(fields: object, place: str) -> ModelShape:
    """Check and decode the result of `shape_to_json`; `place` is the JSON path for error messages."""
    if not isinstance(fields, dict):
        raise InputError(f"{place} is a {type(fields).__name__}: expected an object")
    if set(fields) - set(_ONLY_IF_KNOWN) != _KEYS:
        raise InputError(f"{place} has the keys {sorted(map(str, fields))}: expected {sorted(_KEYS)}")
    layer_ids = fields["moe_layer_ids"]
    if layer_ids is not None:
        if not isinstance(layer_ids, list):
            raise InputError(f"{place}.moe_layer_ids = {layer_ids!r}: expected a list or null")
        layer_ids = tuple(_integer(value, f"{place}.moe_layer_ids[{i}]") for i, value in enumerate(layer_ids))
    required = {name: _integer(fields[name], f"{place}.{name}") for name in _REQUIRED}
    optional = {name: _optional_integer(fields[name], f"{place}.{name}") for name in _OPTIONAL}
    return ModelShape(
        required["num_layers"],
        required["num_experts"],
        optional["top_k"],
        num_expert_groups=required["num_expert_groups"],
        top_k_groups=optional["top_k_groups"],
        moe_layer_ids=layer_ids,
        num_hidden_layers=optional["num_hidden_layers"],
        name=_name(fields.get("name"), f"{place}.name"),
        expert_bytes=_bytes(fields.get("expert_bytes"), f"{place}.expert_bytes"),
    )


def _name(value: object, place: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place} = {value!r}: expected a string")
    return value


def _bytes(value: object, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place} = {value!r}: expected a number of bytes")
    return float(value)


def _optional_integer(value: object, place: str) -> int | None:
    return None if value is None else _integer(value, place)


def _integer(value: object, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{place} = {value!r}: expected an integer")
    return value
