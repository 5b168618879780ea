"""Encodes arrays for the page: compressed as text, large ones quantized to 256 levels.

`page/arrays.js` decodes them; `unpacked` and `Levels.values` do the same in Python.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

_DTYPES: Final = ("uint8", "uint16", "int32", "float32", "float64")
_LARGEST_LEVEL: Final = 255


def packed(array: NDArray[Any]) -> dict[str, object]:
    """Encode an array of any shape with dtype uint8, uint16, int32, float32 or float64 as a JSON object.

    The bytes are little-endian, deflated by zlib and in base64: `DecompressionStream("deflate")` reads them.
    """
    dtype = array.dtype.name
    if dtype not in _DTYPES:
        raise TypeError(f"dtype {dtype}: expected one of {', '.join(_DTYPES)}")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    text = base64.b64encode(zlib.compress(little.tobytes(), 9)).decode("ascii")
    return {"dtype": dtype, "shape": list(array.shape), "deflate": text}


def unpacked(written: dict[str, Any]) -> NDArray[Any]:
    """Decode the result of `packed`."""
    data = zlib.decompress(base64.b64decode(written["deflate"]))
    little = np.dtype(written["dtype"]).newbyteorder("<")
    return np.frombuffer(data, little).astype(written["dtype"]).reshape(written["shape"])


def whole_numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Convert integers >= 0 to the narrowest of the dtypes."""
    largest = int(array.max(initial=0))
    return array.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32)


@final
@dataclass(frozen=True, eq=False)
class Levels:
    """Numbers >= 0 quantized to 256 levels: level 0 for zero, the others equidistant on a log scale."""

    levels: NDArray[np.uint8]
    """[...] level 1 is `lowest`, level 255 is lowest * 2 ** (254 * step); level 0 stands for 0 and for nan."""
    lowest: float
    """The smallest number > 0; 1 if there is none."""
    step: float
    """Distance of two levels, in powers of two."""

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Levels":
        """Map every number > 0 to the nearest level of a scale from the smallest to the largest."""
        positive = values > 0
        levels = np.zeros(values.shape, np.uint8)
        if not positive.any():
            return cls(levels, 1.0, 0.0)
        exponent = np.log2(values[positive])
        lowest = float(exponent.min())
        step = float(exponent.max() - lowest) / (_LARGEST_LEVEL - 1)
        levels[positive] = 1 + np.rint((exponent - lowest) / step if step > 0 else np.zeros_like(exponent))
        return cls(levels, float(2.0**lowest), step)

    @property
    def largest_error(self) -> float:
        """Largest relative quantization error: half a step."""
        return float(2.0 ** (self.step / 2) - 1)

    @property
    def values(self) -> NDArray[np.float64]:
        """[...] the decoded numbers, as the page shows them."""
        exponent = (self.levels.astype(np.float64) - 1) * self.step
        return np.where(self.levels > 0, self.lowest * 2.0**exponent, 0.0)


def upper_triangle(matrix: NDArray[Any]) -> NDArray[Any]:
    """[E (E - 1) / 2] the entries above the diagonal of an [E, E] matrix, row by row."""
    return matrix[np.triu_indices(matrix.shape[0], 1)]
