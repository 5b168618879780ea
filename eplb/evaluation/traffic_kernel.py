"""Counts the copies of tokens that dispatch sends: by expectation, and by a cover of each token's choices."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints
from eplb_traces.jit import helper, njit

CHOICES = "Array(uint16, 3, 'C', readonly=True)"


@njit(
    f"void({CHOICES}, int64[::1], int64[::1], int64, int64, int64[:, :, ::1], int64[:, :, ::1], float64[:, :, ::1],"
    " float64[:, :, ::1], float64[:, :, ::1])"
)
def add_expected_copies(
    expert_ids: NDArray[np.uint16], table_of_token: Ints, row_of_token: Ints, begin: int, end: int, first: Ints,
    place: Ints, share: Floats, copies: Floats, choices: Floats,
) -> None:  # fmt: skip
    """Add every token's expected copies to each place (rank or node).

    A token whose expert e goes to place u with probability p(e, u) misses u with the product of 1 - p(e, u) over its
    choices; so it reaches u with one minus that product. O(choices x holders).

    Parameters
    ----------
    expert_ids
        [t, L, K] chosen experts.
    table_of_token, row_of_token
        [t] which table of shares holds for a token, and the row of `copies` and `choices` it is counted in.
    begin, end
        Layers to do.
    first
        [L, S, E + 1] where each expert's entries begin in `place` and `share`, for each of S tables.
    place, share
        [L, S, entries] place that an expert's tokens may go to, and with which probability.
    copies
        [L, rows, U] tokens that reach the place.
    choices
        [L, rows, U] choices that go to the place: a token counts once for each of its experts there.
    """
    num_tokens, _, top_k = expert_ids.shape
    num_places = copies.shape[2]
    missed = np.ones(num_places)
    touched = np.empty(num_places, np.int64)
    for layer in range(begin, end):
        for token in range(num_tokens):
            table, row = table_of_token[token], row_of_token[token]
            num_touched = 0
            for k in range(top_k):
                expert = np.int64(expert_ids[token, layer, k])
                for entry in range(first[layer, table, expert], first[layer, table, expert + 1]):
                    u, p = place[layer, table, entry], share[layer, table, entry]
                    if missed[u] == 1.0:
                        touched[num_touched] = u
                        num_touched += 1
                    missed[u] *= 1.0 - p
                    choices[layer, row, u] += p
            for i in range(num_touched):
                copies[layer, row, touched[i]] += 1.0 - missed[touched[i]]
                missed[touched[i]] = 1.0


@helper
def _best_place(gain: Ints, preferred: int) -> int:
    """The place with the largest gain; ties to the preferred one, then to the lowest number."""
    best = np.argmax(gain)
    return preferred if gain[preferred] == gain[best] else best


@njit(
    f"void({CHOICES}, int64[::1], int64, int64, int64[:, :, ::1], Array(int64, 1, 'C', readonly=True),"
    " float64[:, :, ::1], float64[:, :, ::1], float64[:, :, ::1])"
)
def add_covering_copies(
    expert_ids: NDArray[np.uint16], source_of_token: Ints, begin: int, end: int, ranks_of_expert: Ints,
    node_of_rank: Ints, rank_copies: Floats, node_copies: Floats, choices: Floats,
) -> None:  # fmt: skip
    """Add every token's copies when its replicas are chosen to visit few nodes, then few ranks.

    Greedy set cover: the node with replicas of the most choices takes these; the rest go to the node with most of the
    rest, and so on. The choices of a node are dealt to its ranks in the same way. Ties go to the token's own node or
    rank, then to the lowest number.

    Parameters
    ----------
    expert_ids
        [t, L, K] chosen experts.
    source_of_token
        [t] rank that holds the token.
    begin, end
        Layers to do.
    ranks_of_expert
        [L, E, X] ranks of the replicas, none twice for an expert; -1 is no rank.
    node_of_rank
        [R]
    rank_copies, node_copies, choices
        [L, R, R], [L, R, N], [L, R, R] by source rank: tokens that reach a rank, a node; choices that go to a rank.
    """
    num_tokens, _, top_k = expert_ids.shape
    num_ranks, num_nodes = node_of_rank.size, node_copies.shape[2]
    most = ranks_of_expert.shape[2]
    node_gain, rank_gain = np.zeros(num_nodes, np.int64), np.zeros(num_ranks, np.int64)
    on_node = np.zeros((top_k, num_nodes), np.bool_)
    open_, here = np.empty(top_k, np.bool_), np.empty(top_k, np.bool_)
    for layer in range(begin, end):
        for token in range(num_tokens):
            source = source_of_token[token]
            on_node[:], open_[:] = False, True
            for k in range(top_k):
                for x in range(most):
                    rank = ranks_of_expert[layer, expert_ids[token, layer, k], x]
                    if rank >= 0:
                        on_node[k, node_of_rank[rank]] = True
            num_open = top_k
            while num_open:
                node_gain[:] = 0
                for k in range(top_k):
                    if open_[k]:
                        for n in range(num_nodes):
                            node_gain[n] += on_node[k, n]
                node = _best_place(node_gain, node_of_rank[source])
                node_copies[layer, source, node] += 1.0
                num_here = 0
                for k in range(top_k):
                    here[k] = open_[k] and on_node[k, node]
                    if here[k]:
                        open_[k] = False
                        num_here += 1
                num_open -= num_here
                while num_here:
                    rank_gain[:] = 0
                    for k in range(top_k):
                        if here[k]:
                            for x in range(most):
                                rank = ranks_of_expert[layer, expert_ids[token, layer, k], x]
                                if rank >= 0 and node_of_rank[rank] == node:
                                    rank_gain[rank] += 1
                    chosen = _best_place(rank_gain, source)
                    rank_copies[layer, source, chosen] += 1.0
                    for k in range(top_k):
                        if here[k]:
                            held = False
                            for x in range(most):
                                held = held or ranks_of_expert[layer, expert_ids[token, layer, k], x] == chosen
                            if held:
                                here[k] = False
                                num_here -= 1
                                choices[layer, source, chosen] += 1.0
