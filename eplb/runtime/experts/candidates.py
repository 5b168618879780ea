"""The grouped FFNs that can execute given expert weights on their device, and why there are none.

Tile shapes were measured on an H200 with hidden 7168 and intermediate 2048; see `tests/benchmarks/RESULTS.md`.
"""

from importlib.util import find_spec

import torch

from eplb.runtime.experts.grouped_ffn import Fp8Ffn, GroupedFfn, TorchFfn, WideFfn
from eplb.runtime.kernels.fp8_gemm import Fp8Shape
from eplb.runtime.kernels.tile_lists import TileHeights
from eplb.runtime.kernels.wide_gemm import GemmShape
from eplb.runtime.weights.expert_weights import ExpertWeights, GateUpLayout
from eplb.runtime.weights.quantization import Dense, Fp8Blocks

_WIDTH_MULTIPLE = 128
_HOPPER = (9, 0)
_SMALL = GemmShape(warps=4, grid=264)
_DEEP = GemmShape(depth=128, stages=3, warps=4, grid=264)
_NARROW = GemmShape(weight_rows=64, warps=4, grid=264)
_LISTS = WideFfn(
    TileHeights(256, 32, 64, 32),
    (GemmShape(), GemmShape(), _SMALL, _SMALL),
    (GemmShape(), GemmShape(), _SMALL, _SMALL),
)
BF16_FFNS: tuple[GroupedFfn, ...] = (
    WideFfn(TileHeights(16), (_DEEP,) * 4, (_DEEP,) * 4),
    WideFfn(TileHeights(32), (GemmShape(stages=5, warps=4, grid=264),) * 4, (_SMALL,) * 4),
    WideFfn(TileHeights(64), (_SMALL,) * 4, (_SMALL,) * 4),
    WideFfn(TileHeights(128), (GemmShape(stages=6),) * 4, (GemmShape(stages=6),) * 4),
    WideFfn(TileHeights(128), (GemmShape(weight_rows=64, depth=128),) * 4, (_NARROW,) * 4),
    _LISTS,
    TorchFfn(),
)
"""For dense bf16 weights, gate and up interleaved."""
FP8_FFNS: tuple[GroupedFfn, ...] = (
    Fp8Ffn(64, Fp8Shape(columns=64, stages=3, grid=396), Fp8Shape()),
    Fp8Ffn(64, Fp8Shape(columns=64, stages=3, grid=396), Fp8Shape(columns=64, stages=3, grid=396)),
    Fp8Ffn(64, Fp8Shape(columns=64), Fp8Shape()),
)
"""For FP8 weights in blocks of 128 x 128."""


def why_no_candidates(weights: ExpertWeights) -> str:
    """What keeps the kernels from executing these weights; empty if nothing does."""
    if weights.device.type != "cuda":
        return f"the weights are on {weights.device}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(weights.device) != _HOPPER:
        return f"{torch.cuda.get_device_name(weights.device)} is not of compute capability 9.0"
    if weights.compute_dtype != torch.bfloat16:
        return f"rows are {weights.compute_dtype}"
    is_bf16 = weights.codec == Dense(torch.bfloat16) and weights.layout is GateUpLayout.INTERLEAVED
    if not is_bf16 and not isinstance(weights.codec, Fp8Blocks):
        return f"weights are {weights.codec.name}, {weights.layout}: expected dense bf16, interleaved, or fp8"
    for name in ("hidden_size", "intermediate_size"):
        if getattr(weights.shape, name) % _WIDTH_MULTIPLE:
            return f"{name} = {getattr(weights.shape, name)} is not a multiple of {_WIDTH_MULTIPLE}"
    return ""


def candidates(weights: ExpertWeights) -> tuple[GroupedFfn, ...]:
    """The grouped FFNs for these weights; none where `why_no_candidates` names a reason."""
    if why_no_candidates(weights):
        return ()
    return FP8_FFNS if isinstance(weights.codec, Fp8Blocks) else BF16_FFNS
