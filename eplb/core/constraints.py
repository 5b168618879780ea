"""Defines the hard side constraints of a plan.

They hold in every layer. Whether a placement exists that meets them is for the solver to say; what contradicts itself
at sight is refused here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.named_enum import NamedEnum
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError

Pair = tuple[int, int]


class ReplicatedSlot(NamedEnum):
    """Which local slots of every rank hold the experts that are replicated everywhere."""

    LAST = "last"
    """The last ones, as vllm-ascend wants its shared experts (pulls 4915, 5338); other engines accept any slot."""
    FIRST = "first"
    """The first ones."""


@final
@dataclass(frozen=True)
class Constraints:
    """What every layer's placement must meet. Without arguments: nothing.

    Parameters
    ----------
    pin
        (expert, rank) pairs: a replica of the expert must lie on the rank.
    forbid
        (expert, rank) pairs: no replica of the expert may lie on the rank.
    apart
        Sets of experts of which a rank holds at most one.
    together
        Sets of experts of which a rank holds all or none; they have equally many replicas.
    replica_counts
        [E] replicas of each expert, or None where they are free.
    replicate_everywhere
        Experts with a replica on every rank, such as a shared expert.
    replicated_slot
        Which local slots hold these replicas, by ascending expert id.
    expert_bytes
        [E] bytes of one replica of each expert; one number for all alike.
    rank_bytes
        [R] bytes that each rank has for one layer's experts; one number for all alike. None where memory is enough.

    Raises
    ------
    InputError
        For a negative id, a count below one, negative bytes, a set of fewer than two experts or with an expert twice,
        an expert that is replicated everywhere twice, or bytes of only one kind.
    """

    pin: Sequence[Pair] = ()
    forbid: Sequence[Pair] = ()
    apart: Sequence[Sequence[int]] = ()
    together: Sequence[Sequence[int]] = ()
    replica_counts: Sequence[int] | None = None
    replicate_everywhere: Sequence[int] = ()
    replicated_slot: ReplicatedSlot = ReplicatedSlot.LAST
    expert_bytes: float | Sequence[float] | None = None
    rank_bytes: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "pin", _pairs("pin", self.pin))
        set_field(self, "forbid", _pairs("forbid", self.forbid))
        set_field(self, "apart", _sets("apart", self.apart))
        set_field(self, "together", _sets("together", self.together))
        if self.replica_counts is not None:
            counts = tuple(int(c) for c in self.replica_counts)
            for expert, count in enumerate(counts):
                if count < 1:
                    raise InputError(f"replica_counts[{expert}] = {count}: expected >= 1")
            set_field(self, "replica_counts", counts)
        everywhere = tuple(sorted(int(expert) for expert in self.replicate_everywhere))
        if len(set(everywhere)) < len(everywhere) or min(everywhere, default=0) < 0:
            raise InputError(f"replicate_everywhere: {everywhere}: expected different ids >= 0")
        set_field(self, "replicate_everywhere", everywhere)
        for name in ("expert_bytes", "rank_bytes"):
            set_field(self, name, _bytes(name, getattr(self, name)))
        if (self.expert_bytes is None) != (self.rank_bytes is None):
            raise InputError("expert_bytes and rank_bytes: expected both or neither")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return self == Constraints(replicated_slot=self.replicated_slot)

    @property
    def tells_ranks_apart(self) -> bool:
        """Whether exchanging two equal ranks may break a constraint."""
        return bool(self.pin or self.forbid) or isinstance(self.rank_bytes, tuple)

    def pinned_pairs(self, num_ranks: int) -> frozenset[Pair]:
        """(expert, rank) pairs that must hold a replica: `pin`, and every rank for `replicate_everywhere`."""
        everywhere = ((expert, rank) for expert in self.replicate_everywhere for rank in range(num_ranks))
        return frozenset((*self.pin, *everywhere))

    def in_slot_order(self, held: Iterable[int]) -> list[int]:
        """The experts of a rank in the order of its slots: ascending, those replicated everywhere last (or first)."""
        experts, everywhere = sorted(held), set(self.replicate_everywhere)
        behind = [expert for expert in experts if expert in everywhere]
        others = [expert for expert in experts if expert not in everywhere]
        return others + behind if self.replicated_slot is ReplicatedSlot.LAST else behind + others

    def check(self, num_experts: int, topology: Topology) -> None:
        """Refuse ids, lengths and counts that do not fit the problem.

        Raises
        ------
        InputError
            For an id out of range, or a sequence that does not have one entry an expert or rank.
        InfeasibleError
            Naming constraints that contradict each other, or the topology, whatever the load.
        """
        for name, pairs in (("pin", self.pin), ("forbid", self.forbid)):
            for expert, rank in pairs:
                _check_id(f"{name}: expert", expert, num_experts)
                _check_id(f"{name}: rank", rank, topology.num_ranks)
        for name, sets in (("apart", self.apart), ("together", self.together)):
            for members in sets:
                for expert in members:
                    _check_id(f"{name}: expert", expert, num_experts)
        for expert in self.replicate_everywhere:
            _check_id("replicate_everywhere: expert", expert, num_experts)
        _check_length("replica_counts", self.replica_counts, num_experts, "expert")
        _check_length("expert_bytes", self.expert_bytes, num_experts, "expert")
        _check_length("rank_bytes", self.rank_bytes, topology.num_ranks, "rank")
        self._refuse_pins(topology)
        self._refuse_sets(topology)
        self._refuse_counts(topology)
        self._refuse_bytes(num_experts, topology)

    def _refuse_pins(self, topology: Topology) -> None:
        everywhere = sorted(set(self.replicate_everywhere) & {expert for expert, _ in self.forbid})
        if everywhere:
            raise InfeasibleError(f"expert {everywhere[0]} is replicated everywhere and forbidden on some ranks")
        both = sorted(set(self.pin) & set(self.forbid))
        if both:
            raise InfeasibleError(f"expert {both[0][0]} is pinned to rank {both[0][1]} and forbidden there")
        for expert, count in sorted(Counter(expert for expert, _ in set(self.forbid)).items()):
            if count == topology.num_ranks:
                raise InfeasibleError(f"forbid: expert {expert} may lie on none of {count} ranks")
        pinned: dict[int, set[int]] = {}
        for expert, rank in self.pinned_pairs(topology.num_ranks):
            pinned.setdefault(rank, set()).add(expert)
        for rank, experts in sorted(pinned.items()):
            slots = int(topology.rank_num_slots[rank])
            if len(experts) > slots:
                raise InfeasibleError(f"pin: {len(experts)} experts on rank {rank} of {slots} slots")
            for members in self.apart:
                clash = sorted(experts & set(members))
                if len(clash) > 1:
                    raise InfeasibleError(f"experts {clash} are pinned to rank {rank} and kept apart")

    def _refuse_sets(self, topology: Topology) -> None:
        most_slots = int(topology.rank_num_slots.max())
        for members in self.together:
            if len(members) > most_slots:
                raise InfeasibleError(f"together: {len(members)} experts, but a rank has at most {most_slots} slots")
            for others in self.apart:
                clash = sorted(set(members) & set(others))
                if len(clash) > 1:
                    raise InfeasibleError(f"experts {clash} are kept together and apart")
        for members in self.apart:
            if len(members) > topology.num_ranks:
                raise InfeasibleError(f"apart: {len(members)} experts on {topology.num_ranks} ranks")

    def _refuse_counts(self, topology: Topology) -> None:
        if self.replica_counts is None:
            return
        total = sum(self.replica_counts)
        if total != topology.num_slots:
            raise InfeasibleError(f"replica_counts sum to {total}: expected the {topology.num_slots} slots")
        forbidden = Counter(expert for expert, _ in set(self.forbid))
        pins = Counter(expert for expert, _ in self.pinned_pairs(topology.num_ranks))
        for expert, count in enumerate(self.replica_counts):
            open_ranks = topology.num_ranks - forbidden[expert]
            if count > open_ranks:
                raise InfeasibleError(f"replica_counts[{expert}] = {count}: it may lie on {open_ranks} ranks")
            if count < pins[expert]:
                raise InfeasibleError(f"replica_counts[{expert}] = {count}: it is pinned to {pins[expert]} ranks")

    def _refuse_bytes(self, num_experts: int, topology: Topology) -> None:
        if self.expert_bytes is None:
            return
        size, room = self.bytes_of_experts(num_experts), self.bytes_of_ranks(topology.num_ranks)
        count = np.ones(num_experts) if self.replica_counts is None else np.asarray(self.replica_counts)
        if size @ count > room.sum():
            raise InfeasibleError(f"rank_bytes sum to {room.sum():.6g}: the experts take {size @ count:.6g}")
        if size.max() > room.max():
            raise InfeasibleError(f"expert_bytes: expert {int(size.argmax())} fits on no rank")

    def bytes_of_experts(self, num_experts: int) -> NDArray[np.float64]:
        """[E] bytes of one replica; zeros when memory is not constrained."""
        return np.broadcast_to(
            np.asarray(0.0 if self.expert_bytes is None else self.expert_bytes, dtype=np.float64), (num_experts,)
        )

    def bytes_of_ranks(self, num_ranks: int) -> NDArray[np.float64]:
        """[R] room of each rank; infinite when memory is not constrained."""
        room = np.inf if self.rank_bytes is None else self.rank_bytes
        return np.broadcast_to(np.asarray(room, dtype=np.float64), (num_ranks,))

    def breaches(self, rank_experts: Sequence[Sequence[int]], num_experts: int) -> Iterator[str]:
        """Say what in a layer's placement breaks a constraint; nothing if it meets them all.

        Parameters
        ----------
        rank_experts
            [R] experts that each rank holds, in the order of its slots.
        num_experts
            E.
        """
        for expert, rank in sorted(self.pinned_pairs(len(rank_experts))):
            if expert not in rank_experts[rank]:
                yield f"expert {expert} is not on rank {rank}, where it is pinned"
        for expert, rank in self.forbid:
            if expert in rank_experts[rank]:
                yield f"expert {expert} is on rank {rank}, where it is forbidden"
        found = Counter(expert for held in rank_experts for expert in held)
        for expert, count in enumerate(self.replica_counts or ()):
            if found[expert] != count:
                yield f"expert {expert} has {found[expert]} replicas, not {count}"
        room, size = self.bytes_of_ranks(len(rank_experts)), self.bytes_of_experts(num_experts)
        for rank, held in enumerate(rank_experts):
            taken = float(sum(size[expert] for expert in held))
            if taken > room[rank]:
                yield f"rank {rank} holds {taken:.6g} of {room[rank]:.6g} bytes"
            yield from self._set_breaches(rank, set(held))
            if set(self.replicate_everywhere) <= set(held):
                yield from self._slot_breaches(rank, list(held))

    def _slot_breaches(self, rank: int, held: list[int]) -> Iterator[str]:
        wanted = list(self.replicate_everywhere)
        at_end = self.replicated_slot is ReplicatedSlot.LAST
        found = held[len(held) - len(wanted) :] if at_end else held[: len(wanted)]
        if found != wanted:
            yield f"rank {rank} holds {found} in its {self.replicated_slot} slots, not {wanted}"

    def _set_breaches(self, rank: int, held: set[int]) -> Iterator[str]:
        for members in self.apart:
            met = sorted(held & set(members))
            if len(met) > 1:
                yield f"experts {met} are on rank {rank} and kept apart"
        for members in self.together:
            met = sorted(held & set(members))
            if 0 < len(met) < len(members):
                yield f"experts {met} are on rank {rank} without all of {members}"


def _pairs(name: str, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    checked = tuple((int(expert), int(rank)) for expert, rank in pairs)
    for pair in checked:
        if min(pair) < 0:
            raise InputError(f"{name}: {pair}: expected ids >= 0")
    return checked


def _sets(name: str, sets: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    checked = tuple(tuple(int(expert) for expert in members) for members in sets)
    for members in checked:
        if len(members) < 2 or len(set(members)) < len(members) or min(members) < 0:
            raise InputError(f"{name}: {members}: expected two or more different ids >= 0")
    return checked


def _bytes(name: str, value: float | Sequence[float] | None) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    checked = tuple(float(v) for v in value) if isinstance(value, Sequence | np.ndarray) else float(value)
    for number in checked if isinstance(checked, tuple) else (checked,):
        if not 0 <= number < float("inf"):
            raise InputError(f"{name} = {number}: expected finite bytes >= 0")
    return checked


def _check_id(what: str, found: int, limit: int) -> None:
    if found >= limit:
        raise InputError(f"{what} = {found}: expected 0 <= id < {limit}")


def _check_length(name: str, value: object, expected: int, what: str) -> None:
    if isinstance(value, tuple) and len(value) != expected:
        raise InputError(f"{name} has {len(value)} entries: expected one for each of {expected} {what}s")
