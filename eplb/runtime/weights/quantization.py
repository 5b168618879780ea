"""Encodes and decodes an expert's matrix: dense, FP8 with 128 x 128 block scales, FP4 with 32-wide block scales.

Shape suffixes: O output rows, I input columns of a matrix (any leading dimensions before them), B bytes of packed
columns, o and i blocks of rows and columns. A stored matrix consists of named parts that are moved together::

    fp8   weight_OI  e4m3, one byte       |  w[0:128, 0:128] / scale[0, 0]  |  w[0:128, 128:256] / scale[0, 1]  | ..
          scale_oi   float32, one a block |  w[128:256, 0:128] / scale[1, 0]| ..

    fp4   weight_OB  byte b of a row      |  column 2b in bits 0-3, column 2b + 1 in bits 4-7
          scale_Oi   uint8, one of 32 columns: 2 ** (scale - 127)

FP8 is DeepSeek-V3's `weight` and `weight_scale_inv`; FP4 is MXFP4 (OCP microscaling 1.0): e2m1 under an e8m0 scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor

from eplb.errors import InputError

FP8_BLOCK = 128
FP4_BLOCK = 32
_FP8_MAX = 448.0
_FP4_MAX = 6.0
_E8M0_BIAS = 127
_SMALLEST_BITS = 1 << 22  # float32 2 ** -127, below the normal numbers
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Where |x| rounds up to the next value; ties go to the even code, so that 0.25 is 0 and 0.75 is 1.
_FP4_TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@final
@dataclass(frozen=True)
class PartSpec:
    """Shape and type of one stored part of a matrix."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightCodec(Protocol):
    """A way to store a matrix. `decode(encode(w))` is w up to the format's rounding."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def block(self) -> int:
        """Rows or columns that may share a scale: a matrix can be cut between blocks."""
        ...

    def parts(self, num_rows: int, num_columns: int) -> dict[str, PartSpec]:
        """The parts of a stored matrix, "weight" first.

        Raises
        ------
        InputError
            If the format cannot hold that shape.
        """
        ...

    def encode(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """Store a matrix or a stack of matrices."""
        ...

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The matrix, or stack of matrices, stored in the parts."""
        ...


@final
@dataclass(frozen=True)
class Dense:
    """The matrix without quantization."""

    dtype: torch.dtype = torch.bfloat16
    name: ClassVar[str] = "dense"
    block: ClassVar[int] = 1

    def parts(self, num_rows: int, num_columns: int) -> dict[str, PartSpec]:
        """See `WeightCodec`."""
        return {"weight": PartSpec((num_rows, num_columns), self.dtype)}

    def encode(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """See `WeightCodec`."""
        return {"weight": weight_OI.to(self.dtype)}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """See `WeightCodec`; returns the stored tensor itself if the types are equal."""
        return parts["weight"].to(dtype)


@final
@dataclass(frozen=True)
class Fp8Blocks:
    """e4m3 under one float32 scale for each block of 128 x 128; blocks at the edge may be smaller."""

    name: ClassVar[str] = "fp8"
    block: ClassVar[int] = FP8_BLOCK

    def parts(self, num_rows: int, num_columns: int) -> dict[str, PartSpec]:
        """See `WeightCodec`."""
        blocks = (-(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
        return {
            "weight": PartSpec((num_rows, num_columns), torch.float8_e4m3fn),
            "scale": PartSpec(blocks, torch.float32),
        }

    def encode(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """The scale maps a block's largest magnitude to 448, e4m3's largest number."""
        num_rows, num_columns = weight_OI.shape[-2:]
        pad = (0, -num_columns % FP8_BLOCK, 0, -num_rows % FP8_BLOCK)
        padded_OI = torch.nn.functional.pad(weight_OI.float(), pad)
        tiles = tiled(padded_OI)
        peak_oi = tiles.abs().amax(dim=(-3, -1))
        scale_oi = torch.where(peak_oi > 0, peak_oi / _FP8_MAX, 1.0)
        scaled_OI = weight_OI.float() / spread(scale_oi, num_rows, num_columns)
        return {"weight": scaled_OI.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn), "scale": scale_oi}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """See `WeightCodec`."""
        weight_OI = parts["weight"]
        scale_OI = spread(parts["scale"], weight_OI.shape[-2], weight_OI.shape[-1])
        return (weight_OI.float() * scale_OI).to(dtype)


@final
@dataclass(frozen=True)
class Fp4Blocks:
    """e2m1, two a byte, under one power of two for each 32 columns of a row."""

    name: ClassVar[str] = "fp4"
    block: ClassVar[int] = FP4_BLOCK

    def parts(self, num_rows: int, num_columns: int) -> dict[str, PartSpec]:
        """See `WeightCodec`."""
        if num_columns % FP4_BLOCK:
            raise InputError(f"fp4: {num_columns} columns: expected a multiple of the block of {FP4_BLOCK}")
        return {
            "weight": PartSpec((num_rows, num_columns // 2), torch.uint8),
            "scale": PartSpec((num_rows, num_columns // FP4_BLOCK), torch.uint8),
        }

    def encode(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """The scale is the least power of two under which a block's largest magnitude is at most 6, e2m1's largest.

        Raises
        ------
        InputError
            If the columns are no whole blocks, or a number is not finite: e2m1 has no such number.
        """
        self.parts(*weight_OI.shape[-2:])
        if not bool(weight_OI.isfinite().all()):
            raise InputError("fp4: a weight is not finite: expected numbers, e2m1 has neither NaN nor infinity")
        tiles = weight_OI.float().reshape(*weight_OI.shape[:-1], -1, FP4_BLOCK)  # [.., O, i, 32]
        mantissa, exponent = torch.frexp(tiles.abs().amax(dim=-1))  # peak = mantissa * 2 ** exponent, mantissa < 1
        # 6 is 0.75 * 2 ** 3: a mantissa up to 0.75 fits with exponent - 3, a larger one needs one more.
        power = (exponent - 3 + (mantissa > _FP4_MAX / 8)).clamp(1 - _E8M0_BIAS, _E8M0_BIAS - 1)
        scaled = (tiles * _power_of_two(_E8M0_BIAS - power).unsqueeze(-1)).flatten(-2)
        ties = torch.tensor(_FP4_TIES, device=weight_OI.device)
        # An odd code's lower tie and an even code's upper tie belong to the even neighbour.
        below, above = torch.bucketize(scaled.abs(), ties), torch.bucketize(scaled.abs(), ties, right=True)
        magnitude = torch.where(below % 2 == 0, below, above)
        code = (magnitude + 8 * (scaled < 0)).to(torch.uint8)
        return {"weight": code[..., 0::2] | (code[..., 1::2] << 4), "scale": (power + _E8M0_BIAS).to(torch.uint8)}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """See `WeightCodec`."""
        packed_OB = parts["weight"]
        code_OI = torch.stack([packed_OB & 15, packed_OB >> 4], dim=-1).flatten(-2).long()
        values = torch.tensor(_FP4_VALUES + tuple(-v for v in _FP4_VALUES), device=packed_OB.device)
        tiles = values[code_OI].reshape(*code_OI.shape[:-1], -1, FP4_BLOCK)
        return (tiles * _power_of_two(parts["scale"]).unsqueeze(-1)).flatten(-2).to(dtype)


def _power_of_two(code: Tensor) -> Tensor:
    """2 ** (code - 127) in float32, exact on every device: the code is the exponent field."""
    bits = code.to(torch.int32) << 23
    return torch.where(bits == 0, _SMALLEST_BITS, bits).view(torch.float32)


def tiled(weight_OI: Tensor) -> Tensor:
    """[.., o, 128, i, 128] of a matrix whose sides are multiples of the block."""
    *lead, num_rows, num_columns = weight_OI.shape
    return weight_OI.reshape(*lead, num_rows // FP8_BLOCK, FP8_BLOCK, num_columns // FP8_BLOCK, FP8_BLOCK)


def spread(scale_oi: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """One scale for each entry of the matrix."""
    rows_Oi = scale_oi.repeat_interleave(FP8_BLOCK, dim=-2)[..., :num_rows, :]
    return rows_Oi.repeat_interleave(FP8_BLOCK, dim=-1)[..., :num_columns]
