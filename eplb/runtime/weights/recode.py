"""Stores FP4 experts as FP8, which the GPU's FP8 kernels execute.

The scale of a block of 128 x 128 is a power of two, so that e2m1 numbers keep all their bits: the FP8 weights are equal
to the FP4 weights unless a block spans more than the 17 binades of e4m3, where the smallest numbers are rounded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.weights.expert_weights import DOWN, GATE_UP, ExpertWeights
from eplb.runtime.weights.quantization import FP8_BLOCK, Fp4Blocks, Fp8Blocks, spread, tiled

_FP8_MAX = 448.0


def fp4_as_fp8(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The FP8 parts "weight" and "scale" of a matrix, or stack of matrices, stored in FP4."""
    weight_OI = Fp4Blocks().decode(parts, torch.float32)
    num_rows, num_columns = weight_OI.shape[-2:]
    pad = (0, -num_columns % FP8_BLOCK, 0, -num_rows % FP8_BLOCK)
    peak_oi = tiled(torch.nn.functional.pad(weight_OI, pad)).abs().amax(dim=(-3, -1))
    scale_oi = torch.where(peak_oi > 0, torch.exp2(torch.ceil(torch.log2(peak_oi / _FP8_MAX))), 1.0)
    scaled_OI = weight_OI / spread(scale_oi, num_rows, num_columns)
    return {"weight": scaled_OI.to(torch.float8_e4m3fn), "scale": scale_oi}


def experts_as_fp8(weights: ExpertWeights) -> ExpertWeights:
    """New weights in FP8 with the experts of FP4 weights, slot by slot.

    Raises
    ------
    InputError
        If the weights are not FP4.
    """
    if not isinstance(weights.codec, Fp4Blocks):
        raise InputError(f"experts_as_fp8: weights are {weights.codec.name}, expected fp4")
    recoded = ExpertWeights(weights.shape, Fp8Blocks(), compute_dtype=weights.compute_dtype, device=weights.device)
    for layer in range(weights.shape.num_layers):
        for slot in range(weights.shape.num_slots):
            stored = weights.slot_parts(layer, slot)
            parts: dict[str, Tensor] = {}
            for name in (GATE_UP, DOWN):
                own = {part: stored[f"{name}.{part}"] for part in ("weight", "scale")}
                parts |= {f"{name}.{part}": tensor for part, tensor in fp4_as_fp8(own).items()}
            recoded.write_parts(layer, slot, parts)
    return recoded
