"""Counts the tokens that dispatch sends from each rank to each rank and node under a placement.

Dispatch sends a token's activations at least once to every rank that holds a chosen replica; between nodes it may send
them once a node. A copy to the token's own rank is counted here and crosses no link; see `link_traffic` for links.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final, final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.topology import Topology
from eplb.dispatch.engine_rules import expected_slot_load
from eplb.errors import InputError
from eplb_traces import RoutingTrace
from eplb_traces.display import facts_html

if TYPE_CHECKING:
    import pandas as pd
from eplb_traces.routing_trace import TokenBatch

MIN_COVER: Final = "min_cover"
"""Name of the replica choice of `covering_traffic`; no engine has it as a dispatch rule."""


class TokenSources(StrEnum):
    """Which rank holds a token before dispatch."""

    TRACE = "trace"
    """The one in the trace; where the trace has none, as `UNIFORM`."""
    UNIFORM = "uniform"
    """Every rank holds the same share of the tokens, whatever the trace holds."""


@final
@dataclass(frozen=True, eq=False)
class TokenSpread:
    """Distinct ranks and nodes of a token's choices, mean over the tokens of a trace."""

    ranks_per_token: Floats
    """[L] 1 to min(top-k, ranks)."""
    nodes_per_token: Floats
    """[L] 1 to min(top-k, nodes)."""

    def __repr__(self) -> str:
        ranks, nodes = self.ranks_per_token.mean(), self.nodes_per_token.mean()
        return f"TokenSpread({len(self.ranks_per_token)} layers, {ranks:.3f} ranks and {nodes:.3f} nodes a token)"

    def _repr_html_(self) -> str:
        means = {"ranks_per_token": self.ranks_per_token.mean(), "nodes_per_token": self.nodes_per_token.mean()}
        return facts_html("TokenSpread, mean of layers", means)

    def to_frame(self) -> "pd.DataFrame":
        """One row a layer: ranks and nodes of a token."""
        import pandas as pd

        layers = np.arange(len(self.ranks_per_token))
        columns = {"ranks_per_token": self.ranks_per_token, "nodes_per_token": self.nodes_per_token}
        return pd.DataFrame({"layer": layers, **columns})


@final
@dataclass(frozen=True, eq=False)
class Traffic:
    """Token copies from each source rank, summed over the tokens of a trace; the arrays are read-only."""

    topology: Topology
    rule: str
    """A dispatch rule, or `MIN_COVER`."""
    rank_copies: Floats
    """[L, R, R] tokens of a source rank (row) that reach a rank: once however many of their experts are there."""
    node_copies: Floats
    """[L, R, N] tokens of a source rank that reach a node."""
    choices: Floats
    """[L, R, R] choices of the tokens of a source rank that go to a rank: what is sent without deduplication."""
    source_tokens: Floats
    """[R] tokens that each rank holds."""
    known_sources: bool
    """Whether the source ranks are those of the trace; if not, every rank holds the same share of the tokens."""

    def __post_init__(self) -> None:
        for array in (self.rank_copies, self.node_copies, self.choices, self.source_tokens):
            array.setflags(write=False)

    def __repr__(self) -> str:
        ranks, tokens = self.topology.num_ranks, self.source_tokens.sum()
        return f"Traffic({tokens:.0f} tokens, {self.num_layers} layers, {ranks} ranks, {self.rule})"

    @property
    def num_layers(self) -> int:
        """L."""
        return self.rank_copies.shape[0]

    @cached_property
    def spread(self) -> TokenSpread:
        """Ranks and nodes that a token visits; its own rank and node count like any other."""
        num_tokens = self.source_tokens.sum()
        return TokenSpread(
            self.rank_copies.sum(axis=(1, 2)) / num_tokens, self.node_copies.sum(axis=(1, 2)) / num_tokens
        )

    @property
    def rank_matrix(self) -> Floats:
        """[R, R] token copies from rank to rank, summed over layers."""
        return np.asarray(self.rank_copies.sum(axis=0))

    @property
    def node_matrix(self) -> Floats:
        """[N, N] token copies from node to node, one a token, node and layer, summed over layers."""
        by_source = self.node_copies.sum(axis=0)
        matrix = np.zeros((self.topology.num_nodes, self.topology.num_nodes))
        np.add.at(matrix, self.topology.node_of_rank, by_source)
        return matrix

    @property
    def rank_load(self) -> Floats:
        """[L, R] choices that each rank computes: the trace's tokens split by the rule."""
        return np.asarray(self.choices.sum(axis=1))


def token_spread(placement: Placement, trace: RoutingTrace) -> TokenSpread:
    """The ranks and nodes that hold the chosen replicas of a token, under even dispatch; see `expected_traffic`."""
    return expected_traffic(placement, trace, sources=TokenSources.UNIFORM).spread


def fitting_sources(trace: RoutingTrace, topology: Topology) -> TokenSources:
    """`TRACE` if the trace holds source ranks and the topology has all of them, else `UNIFORM`."""
    found = False
    for batch in trace:
        if batch.source_rank is None or (batch.num_tokens and batch.source_rank.max() >= topology.num_ranks):
            return TokenSources.UNIFORM
        found = found or batch.num_tokens > 0
    return TokenSources.TRACE if found else TokenSources.UNIFORM


def expected_traffic(
    placement: Placement,
    trace: RoutingTrace,
    dispatch: DispatchRule | str = DispatchRule.EVEN,
    *,
    sources: TokenSources = TokenSources.TRACE,
) -> Traffic:
    """Count the copies that a dispatch rule is expected to send.

    Each choice of an expert falls on a replica with the probability that the rule gives it for the token's source rank,
    independently of the token's other choices. So the mean is exact where experts have one replica or the rule fixes
    it, and an expectation elsewhere.

    With uniform sources, every rank holds the same share of the tokens: exactly so under rules that do not depend on
    the source; under the others token i of the trace is on rank i modulo R.

    Parameters
    ----------
    placement
        Where the experts live.
    trace
        The experts of each token; read once.
    dispatch
        A rule whose shares do not depend on the batch: any but `online`.
    sources
        Where tokens are before dispatch.

    Raises
    ------
    InputError
        If placement and trace are of different models, the trace has no tokens or a source rank that the placement
        lacks, or the rule splits each batch anew.
    """
    from eplb.evaluation.traffic_kernel import add_expected_copies

    rule = DispatchRule.named(dispatch)
    if rule is DispatchRule.ONLINE:
        raise InputError("dispatch = online: it splits each batch anew, so its traffic is not determined by the trace")
    placement.check_model(trace.shape, "trace")
    topology, num_layers = placement.topology, trace.shape.num_layers
    anywhere = rule in EVEN_RULES or rule is DispatchRule.WEIGHTED
    tables = tuple(
        _share_tables(placement, rule, unit_of_slot, 1 if anywhere else topology.num_ranks)
        for unit_of_slot in (topology.rank_of_slot, topology.node_of_rank[topology.rank_of_slot])
    )
    held = _SourceRows(topology.num_ranks, sources, together=anywhere)
    counted = tuple(
        (np.zeros((num_layers, topology.num_ranks, size)), np.zeros((num_layers, topology.num_ranks, size)))
        for size in (topology.num_ranks, topology.num_nodes)
    )
    for batch in trace:
        rows = held.of(batch)
        of_table = np.zeros_like(rows) if anywhere else rows

        def work(layers: slice, batch: TokenBatch = batch, rows: Ints = rows, of_table: Ints = of_table) -> None:
            for table, (copies, choices) in zip(tables, counted, strict=True):
                add_expected_copies(
                    batch.expert_ids, of_table, rows, layers.start, layers.stop, *table, copies, choices
                )

        for_layer_chunks(work, num_layers)
    (rank_copies, choices), (node_copies, _) = counted
    if held.spread_evenly:
        rank_copies, choices, node_copies = (_shared_out(array) for array in (rank_copies, choices, node_copies))
    return Traffic(topology, str(rule), rank_copies, node_copies, choices, held.tokens(), held.known)


def covering_traffic(
    placement: Placement, trace: RoutingTrace, *, sources: TokenSources = TokenSources.TRACE
) -> Traffic:
    """Count the copies when each token's replicas are chosen to visit few nodes, then few ranks: `MIN_COVER`.

    What a runtime could reach that chooses the replicas of a token together, by greedy set cover: the node with
    replicas of most of the choices first, its ranks in the same way. `rank_load` is then not balanced by anything.
    Sources and errors are those of `expected_traffic`.
    """
    from eplb.evaluation.traffic_kernel import add_covering_copies

    placement.check_model(trace.shape, "trace")
    topology, num_layers, num_ranks = placement.topology, trace.shape.num_layers, placement.topology.num_ranks
    slots = placement.logical_to_physical_map
    ranks_of_expert = np.ascontiguousarray(np.where(slots >= 0, topology.rank_of_slot[slots], -1))
    ranks_of_expert[:, :, 1:][ranks_of_expert[:, :, 1:] == ranks_of_expert[:, :, :-1]] = -1  # duplicates are adjacent
    held = _SourceRows(num_ranks, sources, together=False)
    rank_copies, choices = np.zeros((num_layers, num_ranks, num_ranks)), np.zeros((num_layers, num_ranks, num_ranks))
    node_copies = np.zeros((num_layers, num_ranks, topology.num_nodes))
    for batch in trace:
        rows = held.of(batch)

        def work(layers: slice, batch: TokenBatch = batch, rows: Ints = rows) -> None:
            add_covering_copies(
                batch.expert_ids, rows, layers.start, layers.stop, ranks_of_expert, topology.node_of_rank,
                rank_copies, node_copies, choices,
            )  # fmt: skip

        for_layer_chunks(work, num_layers)
    return Traffic(topology, MIN_COVER, rank_copies, node_copies, choices, held.tokens(), held.known)


@final
class _SourceRows:
    """The source rank of each token, batch by batch; unknown ones are dealt to the ranks in turn.

    Parameters
    ----------
    num_ranks
        R.
    sources
        Whether to take those of the trace.
    together
        Whether unknown sources are counted in row 0, to be shared out at the end.
    """

    def __init__(self, num_ranks: int, sources: TokenSources, *, together: bool) -> None:
        self._num_ranks, self._together, self._num_tokens = num_ranks, together, 0
        self._from_trace = sources is TokenSources.TRACE
        self._counts = np.zeros(num_ranks)
        self._known: bool | None = None

    @property
    def known(self) -> bool:
        """Whether the trace holds them."""
        return self._known is True

    @property
    def spread_evenly(self) -> bool:
        """Whether all tokens were counted in row 0."""
        return self._together and not self.known

    def of(self, batch: TokenBatch) -> Ints:
        """[t] row of each token."""
        given = self._from_trace and batch.source_rank is not None
        if batch.num_tokens and self._known not in (None, given):
            raise InputError("source_rank: some batches of the trace have it and others do not")
        if batch.num_tokens:
            self._known = given
        if given and batch.source_rank is not None:
            rows = batch.source_rank.astype(np.int64)
            if batch.num_tokens and rows.max() >= self._num_ranks:
                raise InputError(
                    f"source_rank {rows.max()} in the trace: the placement has {self._num_ranks} ranks, expected less"
                )
        elif self._together:
            rows = np.zeros(batch.num_tokens, np.int64)
        else:
            rows = (self._num_tokens + np.arange(batch.num_tokens)) % self._num_ranks
        self._num_tokens += batch.num_tokens
        self._counts += np.bincount(rows, minlength=self._num_ranks)
        return rows

    def tokens(self) -> Floats:
        """[R] tokens of each rank; InputError if there are none."""
        if not self._num_tokens:
            raise InputError("the trace has no tokens")
        return np.full(self._num_ranks, self._num_tokens / self._num_ranks) if self.spread_evenly else self._counts


def _shared_out(array: Floats) -> Floats:
    """Share what row 0 holds out over all source ranks."""
    return np.repeat(array[:, :1] / array.shape[1], array.shape[1], axis=1)


def _share_tables(
    placement: Placement, rule: DispatchRule, unit_of_slot: Ints, num_tables: int
) -> tuple[Ints, Ints, Floats]:
    """``(first [L, S, E + 1], unit [L, S, P], share [L, S, P])``: where each expert's tokens go, by source rank.

    Expert e's units are the entries first[e] to first[e + 1]; several replicas on one unit are one entry with their
    joint share. With one table it holds for every source rank.
    """
    num_experts, num_ranks = placement.num_experts, placement.topology.num_ranks
    size = (placement.num_layers, num_tables)
    first = np.zeros((*size, num_experts + 1), np.int64)
    unit, share = np.zeros((*size, placement.num_slots), np.int64), np.zeros((*size, placement.num_slots))
    for layer, row in enumerate(placement.physical_to_logical_map):
        held = row != EMPTY_SLOT
        pairs, entry_of_slot = np.unique(
            row[held].astype(np.int64) * (unit_of_slot.max() + 1) + unit_of_slot[held], return_inverse=True
        )
        for table in range(num_tables):
            one_each = np.zeros((num_ranks, num_experts))
            one_each[table] = 1.0
            slot_share = expected_slot_load(placement, layer, one_each, rule)[held]
            entry_share = np.bincount(entry_of_slot.ravel(), weights=slot_share, minlength=pairs.size)
            used = entry_share > 0
            expert, units = np.divmod(pairs[used], unit_of_slot.max() + 1)
            unit[layer, table, : expert.size], share[layer, table, : expert.size] = units, entry_share[used]
            np.cumsum(np.bincount(expert, minlength=num_experts), out=first[layer, table, 1:])
    return first, unit, np.minimum(share, 1.0)
