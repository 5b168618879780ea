"""Computes the layout of the symmetric region of a rank: the parts that the other ranks write into.

    P ranks of the exchange   T tokens of a rank (capacity)   K choices   H hidden   B bytes of a row

    part      shape                     content
    errors    [P] i32                   error word reported by each rank
    flags     [3 families][P][T] i32    epoch in which a rank published a group of tokens
    counters  [P] i32                   low-latency arrivals of each rank
    header    [2][P][4] i32             number of tokens, epoch of the maps
    ids       [2][P][T][K] i32          slot of each selection, -1 if masked
    weights   [2][P][T][K] f32          gate weights
    scales    [2][P][T][H/128] f32      float8 scales
    recv      [2][P][T] rows            the token t of rank s is row (s, t)
    stage     [2][P][T] rows            partial sums of rank d, or [2][T][K] rows in fixed order

All regions are alike, so an offset is valid on every rank. The first axis of size 2 is the parity of the epoch: a rank
writes one half while another may still read the other half.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, final

from eplb.errors import InputError

Part = Literal[
    "errors",
    "choices_flags",
    "dispatch_flags",
    "combine_flags",
    "counters",
    "header",
    "ids",
    "weights",
    "scales",
    "recv",
    "stage",
]
HEADER_WORDS = 4
SCALE_GROUP = 128
"""Channels that share a float8 scale."""
_ALIGNMENT = 256
MOST_RANKS = 31
"""The ranks that a token visits are bits of an int32."""


@final
@dataclass(frozen=True)
class BufferSizes:
    """Largest batch that the buffers hold.

    Parameters
    ----------
    tokens
        Tokens of a process.
    top_k
        K.
    hidden
        H.
    element_bytes
        Bytes of the largest element of a row.
    """

    tokens: int
    top_k: int
    hidden: int
    element_bytes: int = 2


@final
@dataclass(frozen=True)
class RegionShape:
    """Sizes of the symmetric region.

    Parameters
    ----------
    num_ranks
        P.
    tokens
        T, capacity of a rank.
    top_k
        K.
    hidden
        H.
    element_bytes
        Bytes of the largest element of a row: 2 for bf16.
    fixed_order
        Rows are returned one by one and summed at the source in the order of choices.

    Raises
    ------
    InputError
        For sizes below 1, or more ranks than bits of a hit word.
    """

    num_ranks: int
    tokens: int
    top_k: int
    hidden: int
    element_bytes: int = 2
    fixed_order: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "top_k", "hidden", "element_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"symmetric region: {name} = {getattr(self, name)}, expected >= 1")
        if not 1 <= self.num_ranks <= MOST_RANKS:
            raise InputError(f"symmetric region: {self.num_ranks} ranks, expected 1 to {MOST_RANKS}")

    @classmethod
    def of(cls, num_ranks: int, sizes: BufferSizes, *, fixed_order: bool = False) -> "RegionShape":
        """The region for the largest batch."""
        return cls(num_ranks, sizes.tokens, sizes.top_k, sizes.hidden, sizes.element_bytes, fixed_order)

    @property
    def row_bytes(self) -> int:
        """B: bytes from one row of `recv` or `stage` to the next, a multiple of 16."""
        return -(-self.hidden * self.element_bytes // 16) * 16

    @property
    def staged_rows(self) -> int:
        """Rows of one parity of `stage`."""
        return self.tokens * (self.top_k if self.fixed_order else self.num_ranks)

    @cached_property
    def _sizes(self) -> dict[Part, int]:
        ranks, tokens = self.num_ranks, self.tokens
        four_bytes = {
            "errors": (ranks,),
            "choices_flags": (ranks, tokens),
            "dispatch_flags": (ranks, tokens),
            "combine_flags": (ranks, tokens),
            "counters": (ranks,),
            "header": (2, ranks, HEADER_WORDS),
            "ids": (2, ranks, tokens, self.top_k),
            "weights": (2, ranks, tokens, self.top_k),
            "scales": (2, ranks, tokens, -(-self.hidden // SCALE_GROUP)),
        }
        sizes = {part: 4 * prod(shape) for part, shape in four_bytes.items()}
        rows = {"recv": ranks * tokens, "stage": self.staged_rows}
        return sizes | {part: 2 * count * self.row_bytes for part, count in rows.items()}  # type: ignore[return-value]

    @cached_property
    def offsets(self) -> dict[Part, int]:
        """First byte of each part."""
        offsets: dict[Part, int] = {}
        end = 0
        for part, size in self._sizes.items():
            offsets[part] = end
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return offsets

    @property
    def num_bytes(self) -> int:
        """Bytes of the region of one rank."""
        last = list(self.offsets)[-1]
        return self.offsets[last] + -(-self._sizes[last] // _ALIGNMENT) * _ALIGNMENT

    def size(self, part: Part) -> int:
        """Bytes of a part."""
        return self._sizes[part]
