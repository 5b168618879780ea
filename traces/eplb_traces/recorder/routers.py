"""Finds the routers of a torch model and reads the chosen experts from their outputs.

Routers are found by structure, which is stable over all renamed classes of transformers 4.57 to 5.24: a module with a
child ``experts`` and a child ``gate`` or ``router`` is a MoE block, and that child is its router. Outputs are read by
structure too. An integer tensor whose last dimension is K contains the ids (transformers 5; DeepSeek and gpt-oss in
earlier versions). Otherwise the only float tensor with E columns contains logits (transformers before 5), and the ids
are the K largest of its softmax in float32. Logits are refused for routers with a selection bias or a group limit,
because their choice differs, and outputs with two tensors of E columns (Llama 4) are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, cast, final

from eplb_traces.errors import InputError
from eplb_traces.model_shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROUTER_NAMES = ("gate", "router")
_BIAS_NAMES = ("correction", "expert_bias", "moe_statics")
# Names of a number in Hugging Face configurations; the first one found is used.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


@final
@dataclass(frozen=True, eq=False)
class Router:
    """A module that chooses experts.

    Parameters
    ----------
    layer_id
        Absolute index of its layer in the model.
    name
        Dotted name in the model.
    chooses_by_logits
        Whether the K largest logits are its choice: neither it nor its block has a selection bias.
    """

    layer_id: int
    name: str
    module: "nn.Module"
    chooses_by_logits: bool


def find_routers(model: "nn.Module") -> tuple[Router, ...]:
    """Find the routers of a model by structure, by ascending layer.

    Raises
    ------
    InputError
        If there are none, a name does not contain the layer, or a layer has two.
    """
    routers = []
    for block_name, block in model.named_modules():
        children = dict(block.named_children())
        for child_name in _ROUTER_NAMES:
            if "experts" in children and child_name in children:
                name = f"{block_name}.{child_name}".lstrip(".")
                routers.append(Router(_layer_id(name), name, children[child_name], not _has_bias(block)))
    if not routers:
        raise InputError(
            f"{type(model).__name__} has no module with children 'experts' and 'gate' or 'router': give routers"
        )
    return _by_layer(routers)


def named_routers(model: "nn.Module", names: Mapping[int, str]) -> tuple[Router, ...]:
    """Return the modules named for each layer, by ascending layer.

    Raises
    ------
    InputError
        If a module does not exist, or no name is given.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names.values() if name not in modules]
    if unknown or not names:
        raise InputError(
            f"routers = {dict(names)}: {type(model).__name__} has no module {unknown[0] if unknown else ''!r}"
        )
    return _by_layer(
        Router(layer_id, name, modules[name], not _has_bias(modules[name])) for layer_id, name in names.items()
    )


def shape_of_model(model: "nn.Module", routers: tuple[Router, ...], shape: ModelShape | None) -> ModelShape:
    """Return `shape`, or the shape in the model's Hugging Face configuration, with the layer ids of the routers.

    Raises
    ------
    InputError
        If E or K is unknown, or `shape` contradicts the routers.
    """
    layer_ids = tuple(router.layer_id for router in routers)
    if shape is None:
        known = _shape_of_config(model, layer_ids)
        return replace(known, expert_bytes=expert_bytes(model, routers, known.num_experts))
    if shape.top_k is None:
        raise InputError("shape.top_k = None: expected the number of experts that a token chooses")
    if shape.num_layers != len(routers) or shape.moe_layer_ids not in (None, layer_ids):
        raise InputError(
            f"shape has {shape.num_layers} MoE layers {shape.moe_layer_ids}: the routers are of {layer_ids}"
        )
    if shape.expert_bytes is None:
        shape = replace(shape, expert_bytes=expert_bytes(model, routers, shape.num_experts))
    return replace(shape, moe_layer_ids=layer_ids)


def expert_bytes(model: "nn.Module", routers: Iterable[Router], num_experts: int) -> float | None:
    """Bytes of one expert: of the parameters of a MoE block's `experts`, as they are in memory, over their number.

    None where a router has no sibling `experts` with parameters, or the blocks differ.
    """
    modules = dict(model.named_modules())
    sizes = set()
    for router in routers:
        experts = modules.get(f"{router.name.rpartition('.')[0]}.experts".lstrip("."))
        parameters = [] if experts is None else list(experts.parameters())
        sizes.add(sum(of.numel() * of.element_size() for of in parameters) / num_experts)
    size = sizes.pop()
    return None if sizes or not size else size


@final
@dataclass(frozen=True)
class ChoiceReader:
    """Reads the outputs of one router; created from its first output.

    Parameters
    ----------
    position
        Position of the tensor in the output; None: the output is the tensor.
    top_k
        0: the tensor contains ids; otherwise it contains logits, of which the `top_k` largest are the choice.
    """

    position: int | None
    top_k: int

    def __call__(self, output: object) -> "Tensor":
        """Return ids [.., K], on the device."""
        tensor = cast("Tensor", output if self.position is None else cast("Sequence[object]", output)[self.position])
        if not self.top_k:
            return tensor
        import torch

        probabilities = tensor.detach().softmax(dim=-1, dtype=torch.float32)
        return probabilities.topk(self.top_k, dim=-1).indices


def choice_reader(router: Router, output: object, shape: ModelShape) -> ChoiceReader:
    """Find the choice in the output of a router.

    Raises
    ------
    InputError
        If the output contains neither ids nor, for a router that chooses by logits, logits.
    """
    import torch

    parts = output if isinstance(output, tuple | list) else [output]
    tensors = {i: part for i, part in enumerate(parts) if torch.is_tensor(part) and part.ndim >= 2}
    ids = [i for i, t in tensors.items() if not t.is_floating_point() and t.shape[-1] == shape.top_k]
    logits = [i for i, t in tensors.items() if t.is_floating_point() and t.shape[-1] == shape.num_experts]
    limits_groups = shape.top_k_groups is not None and shape.top_k_groups < shape.num_expert_groups
    by_logits = router.chooses_by_logits and not limits_groups
    found = ids if ids or not by_logits else logits
    if len(found) == 1:
        return ChoiceReader(found[0] if parts is output else None, 0 if ids else shape.top_k or 0)
    seen = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors.values()) or type(output).__name__
    raise InputError(
        f"router {router.name} returned {seen}: expected integers [tokens, {shape.top_k}]"
        + (f", or one tensor of logits [.., {shape.num_experts}]" if by_logits else "")
    )


def _layer_id(name: str) -> int:
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if match is None:
        raise InputError(f"router {name}: expected a layer number in its name: give routers")
    return int(match[1])


def _has_bias(module: "nn.Module") -> bool:
    """Return whether a module has a parameter, buffer or child named like a selection bias."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers(), *module.named_children())]
    return any(mark in name for name in names for mark in _BIAS_NAMES)


def _by_layer(routers: Iterable[Router]) -> tuple[Router, ...]:
    in_order = tuple(sorted(routers, key=lambda router: router.layer_id))
    for first, second in pairwise(in_order):
        if first.layer_id == second.layer_id:
            raise InputError(f"routers {first.name} and {second.name} are both of layer {first.layer_id}: give routers")
    return in_order


def _shape_of_config(model: "nn.Module", layer_ids: tuple[int, ...]) -> ModelShape:
    config: object = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    config = text_config() if callable(text_config) else config
    num_experts, top_k = _number(config, _NUM_EXPERTS), _number(config, _TOP_K)
    if num_experts is None or top_k is None:
        raise InputError(
            f"the configuration of {type(model).__name__} lacks the number of experts or top-k: give shape"
        )
    num_groups = _number(config, ("n_group",)) or 1
    if getattr(config, "topk_method", None) == "greedy":  # DeepSeek-V2-Lite has groups but does not use them
        num_groups = 1
    return ModelShape(
        len(layer_ids),
        num_experts,
        top_k,
        num_expert_groups=num_groups,
        top_k_groups=_number(config, ("topk_group",)) if num_groups > 1 else None,
        moe_layer_ids=layer_ids,
        num_hidden_layers=_number(config, ("num_hidden_layers",)),
        name=_model_name(config),
    )


def _model_name(config: object) -> str | None:
    """The last part of the name or folder that the configuration was loaded from, else the type of the model."""
    source, kind = getattr(config, "name_or_path", None), getattr(config, "model_type", None)
    if isinstance(source, str) and source:
        return PurePath(source).name
    return kind if isinstance(kind, str) and kind else None


def _number(config: object, names: tuple[str, ...]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)
