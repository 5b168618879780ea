"""Finds the MoE blocks of a Hugging Face model and their sizes.

A block of `transformers` 5 has a router `gate`, which returns logits, weights and ids of the chosen experts, and
`experts`, through which all experts of the layer are called: ``experts(hidden_states, ids, weights)``. Only `experts`
is replaced, so that routing and shared experts remain the model's own.
"""

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from eplb.errors import InputError
from eplb_traces import ModelShape

MOE_BLOCKS = (
    "DeepseekV2Moe",
    "DeepseekV3MoE",
    "MixtralSparseMoeBlock",
    "OlmoeSparseMoeBlock",
    "Qwen3MoeSparseMoeBlock",
)
"""Classes of the blocks whose experts are SwiGLU FFNs without bias."""
_SILU = ("SiLU", "SiLUActivation")


@final
@dataclass(frozen=True)
class MoeBlock:
    """One MoE block of a model."""

    name: str
    """Name of the module in the model."""
    layer_id: int
    """Number of the model's layer, counted with dense layers."""
    module: nn.Module
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    dtype: torch.dtype


def moe_blocks(model: nn.Module) -> list[MoeBlock]:
    """The MoE blocks of a model, by layer.

    Raises
    ------
    InputError
        If there is no known block, or a block's experts are not plain SwiGLU FFNs or differ in size from the others'.
    """
    blocks = [_block(name, module) for name, module in model.named_modules() if type(module).__name__ in MOE_BLOCKS]
    if not blocks:
        raise InputError(f"{type(model).__name__}: no MoE block found, expected one of {', '.join(MOE_BLOCKS)}")
    blocks.sort(key=lambda block: block.layer_id)
    for block in blocks:
        for size in ("num_experts", "top_k", "hidden_size", "intermediate_size", "dtype"):
            if getattr(block, size) != getattr(blocks[0], size):
                raise InputError(
                    f"{block.name}: {size} = {getattr(block, size)}: expected {getattr(blocks[0], size)} "
                    f"as in {blocks[0].name}"
                )
    return blocks


def model_shape(model: nn.Module) -> ModelShape:
    """The sizes to plan for: those of the MoE blocks of a Hugging Face model.

    Raises
    ------
    InputError
        As `moe_blocks`.
    """
    return shape_of_blocks(moe_blocks(model))


def shape_of_blocks(blocks: list[MoeBlock]) -> ModelShape:
    """The sizes of a model with these blocks."""
    layer_ids = tuple(block.layer_id for block in blocks)
    return ModelShape(len(blocks), blocks[0].num_experts, blocks[0].top_k, moe_layer_ids=layer_ids)


def _block(name: str, module: nn.Module) -> MoeBlock:
    experts, gate = module.get_submodule("experts"), module.get_submodule("gate")
    parameters = dict(experts.named_parameters())
    if parameters.keys() != {"gate_up_proj", "down_proj"}:
        raise InputError(f"{name}.experts has {', '.join(parameters)}: expected gate_up_proj and down_proj")
    activation = type(experts.get_submodule("act_fn")).__name__
    if activation not in _SILU:
        raise InputError(f"{name}.experts has the activation {activation}: expected silu")
    number = re.search(r"\blayers\.(\d+)\.", f"{name}.")
    if number is None:
        raise InputError(f"{name}: expected a layer number as in model.layers.3.mlp")
    gate_up: Tensor = parameters["gate_up_proj"]
    num_experts, both, hidden = gate_up.shape
    return MoeBlock(
        name, int(number[1]), module, num_experts, _integer(gate, "top_k"), hidden, both // 2, gate_up.dtype
    )


def _integer(module: nn.Module, name: str) -> int:
    value = getattr(module, name, None)
    if not isinstance(value, int):
        raise InputError(f"{type(module).__name__}.{name} = {value}: expected an integer")
    return value
