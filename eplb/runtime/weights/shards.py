"""Cuts an expert's FFN over the ranks of a tensor-parallel group (MindIE's moe_tp).

H hidden, I intermediate size of the whole expert. Shard t of n holds the same intermediate channels of all matrices::

    gate, up  [I, H]   rows    [t I / n, (t + 1) I / n)
    down      [H, I]   columns [t I / n, (t + 1) I / n)

so that each shard computes silu(gate) * up of its channels alone and the shards' outputs add up to the expert's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from eplb.errors import InputError


@final
@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`; the default is the whole expert."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"shard {self.index} of {self.count}: expected 0 <= shard < {self.count}")

    def channels(self, intermediate_size: int) -> range:
        """The intermediate channels of this shard."""
        size = intermediate_size // self.count
        return range(self.index * size, (self.index + 1) * size)


def shard_parts(parts: Mapping[str, Tensor], shard: Shard, *, intermediate_size: int, block: int) -> dict[str, Tensor]:
    """The shard's part of each stored part of an expert; scales are cut with their blocks.

    Parameters
    ----------
    parts
        "gate_up.*" [2, I or its blocks, ..], "down.*" [.., I or its blocks or packed bytes].
    shard
        The shard.
    intermediate_size
        I of the whole expert.
    block
        Channels that share a scale: `WeightCodec.block`.

    Raises
    ------
    InputError
        If the shards are not equal numbers of whole blocks.
    """
    if shard.count == 1:
        return dict(parts)
    if intermediate_size % (shard.count * block):
        raise InputError(
            f"intermediate size {intermediate_size} over {shard.count} shards: "
            f"expected a multiple of {shard.count} x {block} channels, the block of a scale"
        )
    cut = {}
    for name, part in parts.items():
        dimension = -2 if name.startswith("gate_up.") else -1
        size = part.shape[dimension] // shard.count
        cut[name] = part.narrow(dimension, shard.index * size, size)
    return cut
