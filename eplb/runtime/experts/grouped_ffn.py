"""The ways to apply a rank's experts to their rows on a GPU: own wide GEMM, own FP8 GEMM, torch's grouped GEMM.

S slots   R rows   H hidden   I intermediate

    x_RH -> gate and up -> SwiGLU -> h_RI -> down -> y_RH       rows sorted by slot, those of slot s end at ends_S[s]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from eplb.runtime.kernels.fp8_gemm import Fp8Shape, Fp8Weights, fp8_gemm, quantize_rows
from eplb.runtime.kernels.swiglu import swiglu
from eplb.runtime.kernels.tile_lists import TileHeights, make_tile_lists
from eplb.runtime.kernels.wide_gemm import GemmShape, wide_gemm
from eplb.runtime.weights.expert_weights import DOWN, GATE_UP


class GroupedFfn(Protocol):
    """A way to apply the experts of all slots, without waiting for the device."""

    @property
    def name(self) -> str:
        """Name in the table of trials."""
        ...

    def __call__(self, parts: Mapping[str, Tensor], x_RH: Tensor, ends_S: Tensor) -> Tensor:
        """Apply to each row the expert of its slot.

        Parameters
        ----------
        parts
            Weights of a layer, from `ExpertWeights.layer_parts`.
        x_RH
            bf16 rows, contiguous.
        ends_S
            [S] int32 end of each slot's rows.

        Returns
        -------
        Tensor
            y_RH; rows past the last end are not written.
        """
        ...


@final
@dataclass(frozen=True)
class WideFfn:
    """The wide GEMM over interleaved weights, SwiGLU in registers.

    Parameters
    ----------
    heights
        Heights of the tiles of tokens.
    gate_up, down
        How each list of tiles is cut, in the first and the second GEMM.
    """

    heights: TileHeights
    gate_up: tuple[GemmShape, ...]
    down: tuple[GemmShape, ...]

    @property
    def name(self) -> str:
        """See `GroupedFfn`."""
        heights = "/".join(str(main + tail) for main, tail in self.heights.of_lists() if main)
        first = self.gate_up[0]
        return f"wide {heights}: {first.weight_rows} x {first.depth} x {first.stages} on {first.grid}"

    def __call__(self, parts: Mapping[str, Tensor], x_RH: Tensor, ends_S: Tensor) -> Tensor:
        """See `GroupedFfn`."""
        lists = make_tile_lists(ends_S, x_RH.shape[0], self.heights)
        gate_up_SJH = parts[f"{GATE_UP}.weight"].flatten(1, 3)  # J = 2 I
        h_RI = wide_gemm(x_RH, gate_up_SJH, lists, self.gate_up, swiglu=True)
        return wide_gemm(h_RI, parts[f"{DOWN}.weight"], lists, self.down, swiglu=False)


@final
@dataclass(frozen=True)
class TorchFfn:
    """`torch.nn.functional.grouped_mm` over interleaved weights, SwiGLU in a pass of its own."""

    name: ClassVar[str] = "grouped_mm"

    def __call__(self, parts: Mapping[str, Tensor], x_RH: Tensor, ends_S: Tensor) -> Tensor:
        """See `GroupedFfn`."""
        gate_up_SJH = parts[f"{GATE_UP}.weight"].flatten(1, 3)
        both_RJ = F.grouped_mm(x_RH, gate_up_SJH.transpose(1, 2), offs=ends_S)
        return F.grouped_mm(swiglu(both_RJ, ends_S), parts[f"{DOWN}.weight"].transpose(1, 2), offs=ends_S)


@final
@dataclass(frozen=True)
class Fp8Ffn:
    """The FP8 GEMM over weights in blocks of 128 x 128; rows are quantized before each GEMM.

    Parameters
    ----------
    tokens
        Rows of a tile.
    gate_up, down
        How the first and the second GEMM are cut.
    """

    tokens: int
    gate_up: Fp8Shape
    down: Fp8Shape

    @property
    def name(self) -> str:
        """See `GroupedFfn`."""
        shapes = [f"{one.columns} x {one.stages} on {one.grid}" for one in (self.gate_up, self.down)]
        return f"fp8 {self.tokens}: {', '.join(shapes)}"

    def __call__(self, parts: Mapping[str, Tensor], x_RH: Tensor, ends_S: Tensor) -> Tensor:
        """See `GroupedFfn`."""
        lists = make_tile_lists(ends_S, x_RH.shape[0], TileHeights(self.tokens))
        gate_up = Fp8Weights(parts[f"{GATE_UP}.weight"].flatten(1, 2), parts[f"{GATE_UP}.scale"].flatten(1, 2))
        down = Fp8Weights(parts[f"{DOWN}.weight"], parts[f"{DOWN}.scale"])
        h_RI = fp8_gemm(quantize_rows(x_RH, ends_S), gate_up, lists, self.gate_up, swiglu=True)
        return fp8_gemm(quantize_rows(h_RI, ends_S), down, lists, self.down, swiglu=False)
