"""Holds the sizes of models that a cost needs: by name from one data file, or from a Hugging Face config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from types import MappingProxyType
from typing import final

from eplb.errors import FormatError, InputError, UnknownNameError
from eplb.formats.json_fields import as_fields, as_int, as_list, as_object, as_text, error_context, load_json

WEIGHT_BYTES = MappingProxyType({"bf16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32})
"""Bytes of one weight by type; MXFP4 has a scale byte for 32 weights of half a byte."""

_FP8_SCALE_COLUMNS = 128  # a token sent in FP8 carries a float32 scale for so many columns


@final
@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What a Mixture-of-Experts layer of a model consists of.

    Parameters
    ----------
    name
        For display.
    hidden_size, intermediate_size
        H of the model and I of one routed expert.
    num_moe_layers, num_dense_layers
        Layers with experts and without.
    num_experts, top_k
        Routed experts of a layer, and those that a token chooses.
    num_expert_groups, top_k_groups
        Groups of group-limited routing, 1 and 1 without.
    num_shared_experts
        Experts that every token passes.
    dtype
        Type of the routed experts' weights as published: bf16, fp8 or mxfp4.

    Raises
    ------
    InputError
        For a size out of range, or an unknown type.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_moe_layers: int
    num_dense_layers: int
    num_experts: int
    top_k: int
    num_expert_groups: int
    top_k_groups: int
    num_shared_experts: int
    dtype: str

    def __post_init__(self) -> None:
        least = {"num_dense_layers": 0, "num_shared_experts": 0}
        for name in _INTEGERS:
            if getattr(self, name) < least.get(name, 1):
                raise InputError(f"{name} = {getattr(self, name)}: expected >= {least.get(name, 1)}")
        if self.top_k > self.num_experts:
            raise InputError(f"top_k = {self.top_k}: expected at most num_experts = {self.num_experts}")
        if self.dtype not in WEIGHT_BYTES:
            raise UnknownNameError("type of weights", self.dtype, WEIGHT_BYTES)

    @property
    def expert_weights(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    def expert_bytes(self, dtype: str) -> float:
        """Bytes of one expert of one layer; a migration moves this many for each replica."""
        if dtype not in WEIGHT_BYTES:
            raise UnknownNameError("type of weights", dtype, WEIGHT_BYTES)
        return self.expert_weights * WEIGHT_BYTES[dtype]

    def wire_bytes(self, dtype: str) -> float:
        """Bytes of one token on the wire: e4m3 with float32 scales for fp8, bf16 for every other type."""
        if dtype == "fp8":
            return self.hidden_size + 4.0 * -(-self.hidden_size // _FP8_SCALE_COLUMNS)
        return 2.0 * self.hidden_size


_INTEGERS = tuple(field.name for field in fields(ModelSizes) if field.name not in ("name", "dtype"))


@cache
def model_presets() -> Mapping[str, ModelSizes]:
    """The models of the data file by name."""
    with as_file(files("eplb.cost") / "model_presets.json") as path:
        entries = as_object(load_json(path), f"{path}: $")
        return MappingProxyType({name: _preset(name, value, f"{path}: $.{name}") for name, value in entries.items()})


def _preset(name: str, value: object, place: str) -> ModelSizes:
    parts = as_fields(value, place, (*_INTEGERS, "dtype"))
    numbers = {key: as_int(parts[key], f"{place}.{key}") for key in _INTEGERS}
    with error_context(place):
        return ModelSizes(name=name, dtype=as_text(parts["dtype"], f"{place}.dtype"), **numbers)


def model_sizes(name: str) -> ModelSizes:
    """The model of a preset's name, or of a Hugging Face config.json at that path.

    Raises
    ------
    UnknownNameError
        For a name that is neither a preset nor a file.
    FormatError
        For a file that is not the configuration of a Mixture-of-Experts model.
    """
    if name in model_presets():
        return model_presets()[name]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return read_model_config(path)
    raise UnknownNameError("model (or config.json)", name, model_presets())


# Hugging Face's names differ from family to family; the first that is there counts.
_NUM_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk")
_INTERMEDIATE = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
_DTYPES = MappingProxyType({"bfloat16": "bf16", "float16": "bf16", "float32": "bf16"})
_QUANTIZED = MappingProxyType({"fp8": "fp8", "mxfp4": "mxfp4"})


def read_model_config(path: Path) -> ModelSizes:
    """The sizes in a Hugging Face config.json.

    Raises
    ------
    FormatError
        With the key that is missing or has a value of another kind.
    """
    place = f"{path}: $"
    config = as_object(load_json(path), place)
    if "text_config" in config:  # models with more than text keep the language model there
        config, place = as_object(config["text_config"], f"{place}.text_config"), f"{place}.text_config"
    num_layers = _number(config, ("num_hidden_layers",), place)
    moe_layers = _moe_layers(config, num_layers, place)
    with error_context(place):
        return ModelSizes(
            name=str(config.get("model_type", path.stem)),
            hidden_size=_number(config, ("hidden_size",), place),
            intermediate_size=_number(config, _INTERMEDIATE, place),
            num_moe_layers=moe_layers,
            num_dense_layers=num_layers - moe_layers,
            num_experts=_number(config, _NUM_EXPERTS, place),
            top_k=_number(config, _TOP_K, place),
            num_expert_groups=_optional(config, "n_group", 1, place),
            top_k_groups=_optional(config, "topk_group", 1, place),
            num_shared_experts=_optional(config, "n_shared_experts", 0, place),
            dtype=_dtype(config, place),
        )


def _number(config: Mapping[str, object], names: tuple[str, ...], place: str) -> int:
    for name in names:
        if config.get(name) is not None:
            return as_int(config[name], f"{place}.{name}", 1)
    raise FormatError(f"{place}: key {' or '.join(map(repr, names))} is missing: expected a Mixture-of-Experts model")


def _optional(config: Mapping[str, object], name: str, default: int, place: str) -> int:
    return default if config.get(name) is None else as_int(config[name], f"{place}.{name}")


def _moe_layers(config: Mapping[str, object], num_layers: int, place: str) -> int:
    """Layers with experts, by the rules of the DeepSeek and the Qwen family; all where neither is given."""
    first = _optional(config, "first_k_dense_replace", 0, place)
    every = _optional(config, "decoder_sparse_step", _optional(config, "moe_layer_freq", 1, place), place)
    dense = {as_int(i, f"{place}.mlp_only_layers") for i in as_list(config.get("mlp_only_layers") or [], place)}
    if every < 1:
        raise FormatError(f"{place}: a MoE layer every {every} layers: expected >= 1")
    is_sparse = [
        layer >= first
        and layer not in dense
        and ((layer + 1) % every == 0 if "decoder_sparse_step" in config else layer % every == 0)
        for layer in range(num_layers)
    ]
    if not any(is_sparse):
        raise FormatError(f"{place}: none of {num_layers} layers has experts")
    return sum(is_sparse)


def _dtype(config: Mapping[str, object], place: str) -> str:
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = as_object(quantization, f"{place}.quantization_config").get("quant_method")
        if method not in _QUANTIZED:
            raise FormatError(
                f"{place}.quantization_config.quant_method = {method!r}: expected one of {', '.join(_QUANTIZED)}"
            )
        return _QUANTIZED[str(method)]
    name = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    if name not in _DTYPES:
        raise FormatError(f"{place}.torch_dtype = {name!r}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[str(name)]
