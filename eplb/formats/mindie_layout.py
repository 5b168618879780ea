"""Computes MindIE's parallel groups of ranks, and which rank holds which tokens.

Attention is split by tensor (tp), data (dp) and context (cp); the experts of the same ranks by moe_tp and moe_ep::

    rank            0   1   2   3   4   5   6   7        tp = 2, dp = 4; moe_tp = 2, moe_ep = 4
    attention     (d0 ....)(d1 ....)(d2 ....)(d3 ....)   tp peers neighbours, data replicas outside
    experts       (e0 ....)(e1 ....)(e2 ....)(e3 ....)   moe_tp peers neighbours, an EP group is 0 2 4 6 or 1 3 5 7

Ranks are numbered as in MindIE-LLM (`parallel_info_manager.py`): "tp" groups are runs of neighbours, "dp" groups
strided. MindIE's own sp cuts the KV cache; here sp > 1 also means that each tensor peer holds its part of the tokens.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import final

from eplb.errors import InputError


@final
@dataclass(frozen=True, slots=True)
class TokenPart:
    """Which tokens a rank brings into the MoE layer.

    Ranks with equal parts hold the same tokens: exactly one of them, or each its share, may dispatch them.
    """

    replica: int
    """Data-parallel replica, [0, dp)."""
    context_part: int
    """Part of the context, [0, cp)."""
    sequence_part: int
    """Part of the sequence among the tensor peers, [0, sp)."""


@final
@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """The six sizes of a MindIE deployment, checked against each other.

    Parameters
    ----------
    world_size
        Ranks of the whole model, over all servers.
    tp, dp, cp
        Attention cut by tensor, by requests, by context.
    sp
        1, or tp: then each tensor peer holds its own part of the sequence.
    moe_tp, moe_ep
        Ranks that share one expert, and ranks over which experts are spread: the R of a placement is moe_ep.

    Raises
    ------
    InputError
        Saying which rule is broken, with the numbers.
    """

    world_size: int
    tp: int = 1
    dp: int = 1
    cp: int = 1
    sp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{field.name} = {value!r}: expected an integer >= 1")
        self._check_product("tp", "dp", "cp")
        self._check_product("moe_tp", "moe_ep")
        if self.sp not in (1, self.tp):
            raise InputError(f"sp = {self.sp}: expected 1 or tp = {self.tp}")

    def _check_product(self, *names: str) -> None:
        sizes = [int(getattr(self, name)) for name in names]
        if prod(sizes) != self.world_size:
            factors = " x ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
            raise InputError(f"{factors} = {prod(sizes)} ranks: expected world_size = {self.world_size}")

    @cached_property
    def tp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that share one attention tensor cut: runs of tp neighbours."""
        return _neighbours(self.world_size, self.tp)

    @cached_property
    def dp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks with the same part of the attention, one in each data replica."""
        return _strided(self.world_size, self.dp)

    @cached_property
    def cp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks of one data replica with the same tensor cut, one in each part of the context."""
        per_replica = self.world_size // self.dp
        inside = _strided(per_replica, self.cp)
        return tuple(tuple(d * per_replica + rank for rank in group) for d in range(self.dp) for group in inside)

    @cached_property
    def moe_tp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that hold cuts of the same experts: runs of moe_tp neighbours, one run for each rank of a placement."""
        return _neighbours(self.world_size, self.moe_tp)

    @cached_property
    def ep_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks over which a set of experts is spread: moe_tp groups of moe_ep ranks."""
        return _strided(self.world_size, self.moe_ep)

    def ep_group(self, rank: int) -> tuple[int, ...]:
        """The EP group of a rank, in order of its placement ranks."""
        return self.ep_groups[self._checked(rank) % self.moe_tp]

    def moe_tp_peers(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold cuts of the same experts as `rank`, itself included."""
        return self.moe_tp_groups[self.placement_rank(rank)]

    def placement_rank(self, rank: int) -> int:
        """The rank of a `Placement` over moe_ep ranks whose slots this rank holds (its cut of them)."""
        return self._checked(rank) // self.moe_tp

    def token_part(self, rank: int) -> TokenPart:
        """Which tokens a rank holds."""
        outer, tensor_part = divmod(self._checked(rank), self.tp)
        replica, context_part = divmod(outer, self.cp)
        return TokenPart(replica, context_part, tensor_part if self.sp > 1 else 0)

    def holders(self, part: TokenPart) -> tuple[int, ...]:
        """The ranks that hold a part of the tokens, ascending: one with sp, all tp peers without."""
        return tuple(rank for rank in range(self.world_size) if self.token_part(rank) == part)

    @cached_property
    def token_parts(self) -> tuple[TokenPart, ...]:
        """Every different part, in order of its first rank."""
        return tuple(dict.fromkeys(self.token_part(rank) for rank in range(self.world_size)))

    def token_ranges(self, rank: int, num_tokens: int) -> tuple[range, ...]:
        """Positions that a rank holds of its data replica's sequence of `num_tokens`.

        With cp the sequence is cut into 2 cp chunks and part c gets chunk c and chunk 2 cp - 1 - c, so that causal
        attention costs all parts the same; with sp the positions of a context part go to the tensor peers in runs.
        Lengths differ by at most one position a cut; without cp and sp it is the whole sequence.
        """
        held = self.token_part(rank)
        num_chunks = 2 * self.cp if self.cp > 1 else 1
        chunks = (held.context_part, num_chunks - 1 - held.context_part) if self.cp > 1 else (0,)
        runs = [_part(range(num_tokens), chunk, num_chunks) for chunk in chunks]
        return tuple(part for part in (_part(run, held.sequence_part, self.sp) for run in runs) if len(part))

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.world_size:
            raise InputError(f"rank = {rank}: expected 0 <= rank < world_size = {self.world_size}")
        return rank


def _part(run: range, index: int, count: int) -> range:
    """Part `index` of `count` of a run, the longer parts first."""
    short, num_longer = divmod(len(run), count)
    start = index * short + min(index, num_longer)
    return run[start : start + short + (index < num_longer)]


def _neighbours(world_size: int, size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(first, first + size)) for first in range(0, world_size, size))


def _strided(world_size: int, size: int) -> tuple[tuple[int, ...], ...]:
    num_groups = world_size // size
    return tuple(tuple(range(first, world_size, num_groups)) for first in range(num_groups))
