"""Counts which experts the tokens chose together, layer by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb_traces.coactivation.pair_counts import BYTES_PER_PAIR, pair_counts
from eplb_traces.coactivation.time_split import split
from eplb_traces.errors import InputError
from eplb_traces.routing_trace import RoutingTrace

__all__ = [
    "CoActivation",
    "GeneralisingPair",
    "PairAffinity",
    "PairShare",
    "coactivation",
    "coactivations",
    "generalising_pairs",
    "split",
    "transitions",
]

_PRIOR_PAIRS = (
    5.0  # added to found and expected pairs before they are compared: pairs that are rare by chance stay near 1
)


class PairAffinity(NamedTuple):
    """Two experts that tokens chose together."""

    expert: int
    other: int  # > expert
    tokens: int
    lift: float


class GeneralisingPair(NamedTuple):
    """Two experts that tokens of one half of a trace chose together, and their lift in the other half."""

    expert: int
    other: int  # > expert
    tokens: int
    lift: float
    held_out_tokens: int
    held_out_lift: float  # nan where the other half never chose one of them


class PairShare(NamedTuple):
    """A share of all pairs of one token's choices: as found, and as it would be without affinity."""

    observed: float  # nan where there are no pairs
    expected: float

    @property
    def ratio(self) -> float:
        """Observed over expected: 1 is no affinity; nan where nothing is expected."""
        return self.observed / self.expected if self.expected > 0 else float("nan")


@final
@dataclass(frozen=True, eq=False)
class CoActivation:
    """Which experts the tokens chose together in one layer; frozen and checked on construction, the array read-only.

    Parameters
    ----------
    layer
        Index in [0, L).
    pairs
        [E, E] tokens that chose both experts: symmetric; the diagonal is each expert's tokens.
    num_tokens
        Tokens that were counted.

    Raises
    ------
    InputError
        If `pairs` is not such a table.
    """

    layer: int
    pairs: NDArray[np.int64]
    num_tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", _checked_pairs(self.pairs, self.num_tokens))

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.pairs)

    @property
    def expert_tokens(self) -> NDArray[np.int64]:
        """[E] tokens that chose each expert."""
        return self.pairs.diagonal()

    @property
    def num_pairs(self) -> int:
        """Unordered pairs of different experts of one token, over all tokens: K * (K - 1) / 2 for each."""
        return int(self.pairs.sum() - self.expert_tokens.sum()) // 2

    def lift(self) -> NDArray[np.float64]:
        """How much more often two experts are chosen together than if each were chosen by itself.

        A token cannot choose an expert twice, so its K choices leave fewer pairs than K independent ones would: without
        any affinity the lift is about (K - 1) / K, not 1 (0.88 for top-8, 0.5 for top-2). `adjusted_lift` has no such
        bias. The lift of two rare experts is mostly chance: `top_pairs` ranks by tokens instead.

        Returns
        -------
        NDArray
            [E, E] P(i, j) / (P(i) P(j)); 1 is independence; nan on the diagonal and where an expert has no token.
        """
        return _without_diagonal(_ratio(self.pairs * float(self.num_tokens), self._product()))

    def adjusted_lift(self) -> NDArray[np.float64]:
        """Found over expected pairs, with the expectation of `expected_pairs`.

        Returns
        -------
        NDArray
            [E, E]; 1 is no affinity; nan on the diagonal and where no pair is expected.
        """
        return _without_diagonal(_ratio(self.pairs, self.expected_pairs))

    def shrunk_lift(self) -> NDArray[np.float64]:
        """`adjusted_lift` with five pairs added to the found and to the expected ones: pairs that are rare are near 1.

        Returns
        -------
        NDArray
            [E, E] > 0; 1 is no affinity; nan on the diagonal and where an expert has no token.
        """
        used = self.expert_tokens > 0
        return _without_diagonal(np.where(used[:, None] & used, self._affinity(), np.nan))

    @cached_property
    def expected_pairs(self) -> NDArray[np.float64]:
        """[E, E] pairs if every expert met the others without affinity, and as often as it did; 0 on the diagonal.

        Quasi-independence: a product of one number for each expert, off the diagonal; every row sums to the pairs that
        the expert was part of.
        """
        from eplb_traces.coactivation.pair_independence import independent_pairs

        expected = independent_pairs(self.pairs.sum(axis=1) - self.expert_tokens)
        expected.setflags(write=False)
        return expected

    def top_pairs(self, count: int) -> list[PairAffinity]:
        """The pairs with the most tokens above expectation, which is P(i) P(j) times the tokens, as in `lift`.

        Pairs at or below expectation are never among them. Ties go to the lowest ids.
        """
        if count < 1:
            raise InputError(f"count = {count}: expected at least one pair")
        lift = self.lift()
        expert, other = np.triu_indices(self.num_experts, 1)
        # tokens - n_i n_j / T in units of 1 / T, so that ties are ties of whole numbers.
        tokens = self.pairs[expert, other]
        surplus = tokens * self.num_tokens - self.expert_tokens[expert] * self.expert_tokens[other]
        order = np.argsort(-surplus, kind="stable")[:count]
        return [
            PairAffinity(i, j, int(self.pairs[i, j]), float(lift[i, j]))
            for i, j, above in zip(expert[order].tolist(), other[order].tolist(), surplus[order], strict=True)
            if above > 0
        ]

    def order(self) -> NDArray[np.int64]:
        """[E] the experts in an order in which those that are chosen together are neighbours.

        The leaves of the tree of `clusters`, ordered so that neighbours are as similar as possible; experts without a
        token come last. Deterministic.
        """
        from eplb_traces.coactivation.seriation import leaf_order

        return leaf_order(self._affinity(), self.expert_tokens > 0)

    def clusters(self, count: int) -> NDArray[np.int64]:
        """Clusters of experts that are chosen together.

        Parameters
        ----------
        count
            Groups wanted, 1 to E; fewer come back where distances tie or fewer experts have tokens.

        Returns
        -------
        NDArray
            [E] group of each expert, numbered in the order of `order`; experts without a token are in the last one.
        """
        from eplb_traces.coactivation.seriation import cut_tree

        if not 1 <= count <= self.num_experts:
            raise InputError(f"count = {count}: expected 1 to {self.num_experts} clusters")
        return cut_tree(self._affinity(), self.expert_tokens > 0, count)

    def share_inside(self, group_of_expert: ArrayLike) -> PairShare:
        """The share of pairs whose two experts are of one group, beside that of `expected_pairs`.

        Parameters
        ----------
        group_of_expert
            [E] integers: experts with the same number are one group.
        """
        group = np.asarray(group_of_expert)
        if group.shape != (self.num_experts,) or group.dtype.kind not in "iu":
            raise InputError(
                f"group_of_expert is {group.dtype} of shape {group.shape}: expected {self.num_experts} integers"
            )
        return self.share_together((group[:, None] == group).astype(np.float64))

    def share_together(self, probability: NDArray[np.float64]) -> PairShare:
        """The share of pairs that end up together if pair (i, j) does so with the given probability.

        Parameters
        ----------
        probability
            [E, E] symmetric, 0 to 1; the diagonal does not matter.
        """
        if self.num_pairs == 0:
            return PairShare(float("nan"), float("nan"))
        found = np.where(np.eye(self.num_experts, dtype=np.bool_), 0, self.pairs)
        shares = [float((pairs * probability).sum() / pairs.sum()) for pairs in (found, self.expected_pairs)]
        return PairShare(*shares)

    def _product(self) -> NDArray[np.float64]:
        tokens = self.expert_tokens.astype(np.float64)
        return np.outer(tokens, tokens)

    def _affinity(self) -> NDArray[np.float64]:
        """[E, E] adjusted lift, shrunk towards 1 where there are few tokens."""
        return (self.pairs + _PRIOR_PAIRS) / (self.expected_pairs + _PRIOR_PAIRS)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoActivation):
            return NotImplemented
        same_numbers = (self.layer, self.num_tokens) == (other.layer, other.num_tokens)
        return same_numbers and np.array_equal(self.pairs, other.pairs)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type["CoActivation"], tuple[object, ...]]:
        return CoActivation, (self.layer, self.pairs, self.num_tokens)

    def __repr__(self) -> str:
        return f"CoActivation(layer {self.layer}, {self.num_experts} experts, {self.num_tokens} tokens)"


def coactivation(trace: RoutingTrace, layer: int) -> CoActivation:
    """Count the pairs of one layer, in one pass over the trace."""
    return next(coactivations(trace, [layer]))


def coactivations(
    trace: RoutingTrace, layers: Sequence[int] | None = None, *, max_bytes: int = 256 << 20
) -> Iterator[CoActivation]:
    """Count the pairs of several layers, with as many passes over the trace as the memory asks for.

    Parameters
    ----------
    trace
        Token-level choices; walked through as a stream.
    layers
        Indices in [0, L), in the order in which they are wanted; None: all.
    max_bytes
        Memory for counts, 12 * E^2 bytes a layer: what fits is counted in one pass, and one layer always is.

    Raises
    ------
    InputError
        If a layer is not one of the trace's.
    """
    wanted = list(range(trace.shape.num_layers)) if layers is None else [int(layer) for layer in layers]
    for layer in wanted:
        _check_layer(layer, trace.shape.num_layers)
    at_once = max(1, max_bytes // (BYTES_PER_PAIR * trace.shape.num_experts**2))
    passes = [wanted[first : first + at_once] for first in range(0, len(wanted), at_once)]
    return (found for of_pass in passes for found in _one_pass(trace, of_pass))


def transitions(trace: RoutingTrace, layer: int) -> NDArray[np.int64]:
    """Count which expert of the next layer follows which of this one.

    Returns
    -------
    NDArray
        [E, E] tokens that chose i in `layer` and j in the next one; all K x K pairs of a token are counted.

    Raises
    ------
    InputError
        If `layer` is the last one or none of the trace's.
    """
    if trace.shape.num_layers == 1:
        raise InputError("transitions of a trace of one layer: expected a layer that another one follows")
    _check_layer(layer, trace.shape.num_layers - 1)
    counts, _ = pair_counts(trace, [layer], distance=1)
    return counts[0]


def generalising_pairs(trace: RoutingTrace, layer: int, count: int) -> list[GeneralisingPair]:
    """The strongest pairs of the earlier half of a trace, with their lift in the later half.

    An affinity that is shown should be one that was not only found: one whose `held_out_lift` stays well above 1. The
    halves are those of `split`.
    """
    earlier, later = (coactivation(half, layer) for half in split(trace))
    held_out = later.lift()
    return [
        GeneralisingPair(*pair, int(later.pairs[pair.expert, pair.other]), float(held_out[pair.expert, pair.other]))
        for pair in earlier.top_pairs(count)
    ]


def _one_pass(trace: RoutingTrace, layers: list[int]) -> Iterator[CoActivation]:
    counts, num_tokens = pair_counts(trace, layers, distance=0)
    for layer, ordered in zip(layers, counts, strict=True):
        pairs = ordered + ordered.T
        np.fill_diagonal(pairs, ordered.diagonal())
        yield CoActivation(layer, pairs, num_tokens)


def _check_layer(layer: int, num_layers: int) -> None:
    if not 0 <= layer < num_layers:
        raise InputError(f"layer = {layer}: expected 0 <= layer < {num_layers}")


def _checked_pairs(pairs: ArrayLike, num_tokens: int) -> NDArray[np.int64]:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0 or array.dtype.kind not in "iu":
        raise InputError(f"pairs is {array.dtype} of shape {array.shape}: expected integers [experts, experts]")
    tokens = array.diagonal()
    if array.min() < 0 or (array != array.T).any() or (array > tokens).any():
        wrong = (array < 0) | (array != array.T) | (array > tokens) | (array > tokens[:, None])
        i, j = (int(place) for place in np.argwhere(wrong)[0])
        raise InputError(
            f"pairs[{i}, {j}] = {array[i, j]}: expected >= 0, equal to pairs[{j}, {i}], at most either expert's tokens"
        )
    if array.diagonal().max() > num_tokens:
        expert = int(array.diagonal().argmax())
        raise InputError(f"pairs[{expert}, {expert}] = {array[expert, expert]}: expected at most {num_tokens} tokens")
    array = np.array(array, dtype=np.int64)
    array.setflags(write=False)
    return array


def _ratio(numerator: NDArray[np.number], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Their quotient; nan where the denominator is 0."""
    quotient = np.full(denominator.shape, np.nan)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)


def _without_diagonal(table: NDArray[np.float64]) -> NDArray[np.float64]:
    np.fill_diagonal(table, np.nan)
    return table
