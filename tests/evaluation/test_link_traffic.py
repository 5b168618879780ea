"""Copies and bytes on links, against counting by hand."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from eplb.evaluation.link_traffic import Activation, LinkTraffic, Transfer, link_traffic
from eplb.evaluation.traffic import expected_traffic
from eplb_traces import ModelShape, RoutingTrace, TokenBatch

# Ranks 0 to 3 hold experts 01 23 45 67; nodes {0, 1} and {2, 3}; 100 GB/s inside a node, 10 GB/s between nodes.
PLACEMENT = eplb.Placement([np.arange(8)], 8, eplb.Topology(2, 2, 2, intra_node_gbps=100, inter_node_gbps=10))


def traffic_of(tokens):
    """{source rank: choices of its tokens}."""
    shape = ModelShape(1, 8, 3)
    ids = np.array([[choice] for _, choice in tokens])
    zeros = np.zeros(len(ids), int)
    trace = RoutingTrace(shape, [TokenBatch(shape, ids, zeros, zeros, np.array([source for source, _ in tokens]))])
    return expected_traffic(PLACEMENT, trace)


# Token a on rank 0 chooses 0 (its own rank), 4 and 5 (rank 2); token b on rank 3 chooses 0, 2 and 3 (ranks 0 and 1).
TRAFFIC = traffic_of([(0, [0, 4, 5]), (3, [0, 2, 3])])


@pytest.mark.parametrize(
    ("transfer", "copies"),
    [
        ("per_choice", {(0, 2): 2, (3, 0): 1, (3, 1): 2}),
        ("per_rank", {(0, 2): 1, (3, 0): 1, (3, 1): 1}),
        # b goes to rank 1, the second of its node as rank 3 is, and from there to rank 0.
        ("forwarded", {(0, 2): 1, (3, 1): 1, (1, 0): 1}),
        ("all_gather", {(0, 1): 1, (0, 2): 1, (0, 3): 1, (3, 0): 1, (3, 1): 1, (3, 2): 1}),
    ],
)
def test_copies_by_hand(transfer, copies):
    links = link_traffic(TRAFFIC, Transfer(transfer))
    assert {tuple(link): links.copies[tuple(link)] for link in np.argwhere(links.copies).tolist()} == copies
    back = links.reversed
    assert {tuple(link): back.copies[tuple(link)] for link in np.argwhere(back.copies).tolist()} == {
        (receiver, sender): count for (sender, receiver), count in copies.items()
    }


def test_bytes_and_seconds_by_hand():
    links = link_traffic(TRAFFIC, Transfer.FORWARDED)
    assert links.summary(1000.0) == {
        "inter_node_copies_per_token": 1.0,
        "intra_node_copies_per_token": 0.5,
        "busiest_link": [0, 2],
        "busiest_link_copies": 1.0,
        "inter_node_bytes": 2000.0,
        "inter_node_out_bytes_busiest_rank": 1000.0,
        "inter_node_in_bytes_busiest_rank": 1000.0,
        "intra_node_bytes": 1000.0,
        "intra_node_out_bytes_busiest_rank": 1000.0,
        "intra_node_in_bytes_busiest_rank": 1000.0,
        "busiest_link_bytes": 1000.0,
        "seconds": 1000.0 / 10e9,
    }
    assert set(links.summary()) == {
        "inter_node_copies_per_token", "intra_node_copies_per_token", "busiest_link", "busiest_link_copies",
    }  # fmt: skip


def test_what_a_rank_sends_and_what_it_receives_are_counted_apart():
    # Rank 3 sends to ranks 0 and 1, each of which receives one; rank 2 receives one of rank 0.
    copies = link_traffic(TRAFFIC, Transfer.PER_RANK)
    for links, sent, received in ((copies, 2000.0, 1000.0), (copies.reversed, 1000.0, 2000.0)):
        found = links.summary(1000.0)
        assert found["inter_node_out_bytes_busiest_rank"] == sent
        assert found["inter_node_in_bytes_busiest_rank"] == received
        assert found["seconds"] == 2000.0 / 10e9
    topology = PLACEMENT.topology
    inside = LinkTraffic(topology, Transfer.PER_RANK, np.array([[0.0, 3, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]), 1.0)
    found = inside.summary(1000.0)
    assert [found[f"intra_node_{way}_bytes_busiest_rank"] for way in ("out", "in")] == [3000, 3000]
    assert found["inter_node_bytes"] == 0
    assert found["seconds"] == 3000.0 / 100e9


def test_the_busiest_link_counts_time_not_copies():
    copies = np.zeros((4, 4))
    copies[0, 1], copies[0, 2] = 9, 1
    assert LinkTraffic(PLACEMENT.topology, Transfer.PER_RANK, copies, 1.0).busiest_link == (0, 2)
    copies[0, 1] = 11
    assert LinkTraffic(PLACEMENT.topology, Transfer.PER_RANK, copies, 1.0).busiest_link == (0, 1)


def test_forwarding_sends_no_more_between_nodes_than_any_other_way():
    rng = np.random.default_rng(0)
    shape = ModelShape(1, 8, 3)
    ids = np.array([[rng.permutation(8)[:3]] for _ in range(200)])
    trace = RoutingTrace(shape, [TokenBatch(shape, ids, np.zeros(200, int), np.arange(200))])
    traffic = expected_traffic(PLACEMENT, trace)
    ways = [link_traffic(traffic, transfer).between_nodes.sum() for transfer in Transfer]
    per_choice, per_rank, forwarded, all_gather = ways
    assert forwarded < per_rank < per_choice
    assert per_rank < all_gather
    # Remote nodes of a token: what it visits less its own.
    own = sum(traffic.node_copies[0, rank, node] for rank, node in enumerate(PLACEMENT.topology.node_of_rank))
    assert forwarded == pytest.approx(traffic.node_copies.sum() - own)


def test_bytes_of_a_token():
    # DeepSeek-V3: 7168 values and 56 scales of 4 bytes in FP8.
    assert [Activation(name).token_bytes(7168) for name in ("fp8", "bf16", "fp32")] == [7392, 14336, 28672]
    assert [Activation.FP8.token_bytes(size) for size in (1, 128, 129)] == [5, 132, 137]
    with pytest.raises(InputError, match="hidden_size = 0"):
        Activation.BF16.token_bytes(0)
