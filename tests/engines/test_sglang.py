"""SGLang's algorithm: its signature, its history of steps, dense layers, inactive ranks, the live map."""

from enum import Enum, auto

import numpy as np
import pytest

from eplb.engines.policy import PolicyInputError, PolicySettings
from eplb.engines.sglang import SglangAlgorithm, rebalance_experts
from eplb.errors import InputError
from tests.engines.instances import assert_stay_in_slots, assert_whole, busiest, doubles, random_call
from tests.engines.test_deepseek import assert_maps_agree
from tests.oracles import published_rebalance

torch = pytest.importorskip("torch")
SETTINGS = PolicySettings()


class Algorithm(Enum):
    """Like SGLang's enumeration."""

    deepseek = auto()
    elasticity_aware = auto()


def call(algorithm=None, *, tokens, slots, per_rank, groups=None, nodes=1, name="auto"):
    """With SGLang's own keywords."""
    return (algorithm or SglangAlgorithm(settings=SETTINGS)).rebalance_experts(
        tokens_per_expert=tokens,
        num_physical_experts=slots,
        num_local_physical_experts=per_rank,
        num_groups=groups,
        num_nodes=nodes,
        algorithm=name,
    )


@pytest.mark.parametrize("seed", range(25))
def test_the_three_maps_agree_and_are_complete_without_duplicates(seed):
    weight, slots, groups, nodes, ranks = random_call(np.random.default_rng(seed))
    maps = call(tokens=torch.from_numpy(weight), slots=slots, per_rank=slots // ranks, groups=groups, nodes=nodes)
    assert all(part.dtype == torch.int64 and part.device.type == "cpu" for part in maps)
    assert_maps_agree(*maps)
    assert_whole(maps[0].numpy(), weight.shape[1])
    assert doubles(maps[0].numpy(), ranks) == 0


def test_one_step_equals_no_steps_and_the_module_function_is_the_same():
    tokens = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1, (3, 16)))
    flat = call(tokens=tokens, slots=20, per_rank=5)
    for again in (call(tokens=tokens[None], slots=20, per_rank=5), rebalance_experts(tokens, 20, 5, None, 1, "auto")):
        assert all(torch.equal(left, right) for left, right in zip(flat, again, strict=True))


def test_several_steps_are_scenarios_and_unused_ones_are_ignored():
    # Experts 0 and 1 peak together; the sum shows four alike. See test_policy.
    steps = torch.tensor([[[9, 9, 1, 1]], [[1, 1, 9, 9]]])
    phy2log, _, _ = call(tokens=steps, slots=4, per_rank=2)
    assert {len(set(rank) & {0, 1}) for rank in phy2log.view(2, 2).tolist()} == {1}
    rng = np.random.default_rng(0)
    history = torch.from_numpy(rng.poisson(rng.lognormal(2, 1, (2, 16)), (6, 2, 16)))
    ring = torch.cat([history[:4], torch.zeros_like(history), history[4:]])
    assert torch.equal(call(tokens=ring, slots=20, per_rank=5)[0], call(tokens=history, slots=20, per_rank=5)[0])


def test_a_long_history_is_summed_into_windows():
    rng = np.random.default_rng(0)
    history = torch.from_numpy(rng.poisson(rng.lognormal(2, 1, (2, 16)), (100, 2, 16))).int()
    phy2log, _, _ = call(tokens=history, slots=20, per_rank=5)
    total = history.sum(dim=0).double().numpy()
    assert (busiest(total, phy2log.numpy(), 4) <= 1.1 * total.sum(axis=1) / 4).all()


def test_dense_layers_have_a_row_without_load():
    tokens = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1, (3, 16)))
    tokens[0] = 0
    phy2log, _, logcnt = call(tokens=tokens, slots=20, per_rank=5)
    assert_whole(phy2log.numpy(), 16)
    assert logcnt[0].max() == 2


def test_without_load_replicas_are_even():
    _, _, logcnt = call(tokens=torch.zeros(3, 2, 16), slots=20, per_rank=5)
    assert logcnt.max() == 2


def test_the_live_map_is_read_and_unchanged_below_the_trigger():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.lognormal(0, 1, (4, 64)) * 1000)
    first, _, _ = call(tokens=tokens, slots=80, per_rank=5)
    knowing = SglangAlgorithm(settings=SETTINGS, live_map=lambda: first)
    assert torch.equal(call(knowing, tokens=tokens, slots=80, per_rank=5)[0], first)
    drifted = tokens * torch.from_numpy(rng.lognormal(0, 0.3, (4, 64)))
    second, _, _ = call(knowing, tokens=drifted, slots=80, per_rank=5)
    assert_stay_in_slots(first.numpy(), second.numpy(), 16)
    afresh, _, _ = call(tokens=drifted, slots=80, per_rank=5)
    assert 0 < (second != first).sum() < 0.3 * (afresh != first).sum()


def test_a_live_map_with_another_number_of_layers_is_ignored():
    tokens = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1, (3, 16)))
    other = SglangAlgorithm(settings=SETTINGS, live_map=lambda: torch.zeros(2, 20, dtype=torch.int64))
    assert torch.equal(
        call(other, tokens=tokens, slots=20, per_rank=5)[0], call(tokens=tokens, slots=20, per_rank=5)[0]
    )


@pytest.mark.parametrize("name", ["elasticity_aware_hierarchical", Algorithm.elasticity_aware])
def test_inactive_ranks_get_no_tokens_and_expert_zero_in_their_slots(name):
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.lognormal(0, 1, (2, 16)) * 100)
    alive = torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32)
    algorithm = SglangAlgorithm(settings=SETTINGS, active_ranks=lambda: alive)
    phy2log, log2phy, logcnt = call(algorithm, tokens=tokens, slots=25, per_rank=5, name=name)
    assert phy2log.shape == (2, 25)
    assert (phy2log[:, 5:10] == 0).all()
    living = torch.cat([phy2log[:, :5], phy2log[:, 10:]], dim=1)
    assert_whole(living.numpy(), 16)
    assert logcnt.sum(dim=1).tolist() == [20, 20]
    for layer in range(2):
        for expert in range(16):
            slots = log2phy[layer, expert, : logcnt[layer, expert]]
            assert (phy2log[layer, slots] == expert).all()
            assert not ((slots >= 5) & (slots < 10)).any()


def test_inactive_ranks_matter_only_for_elasticity_aware_algorithms():
    tokens = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1, (2, 16)))
    dead = SglangAlgorithm(settings=SETTINGS, active_ranks=lambda: torch.tensor([0, 1, 1, 1]))
    for name in ("auto", Algorithm.deepseek):
        maps = call(dead, tokens=tokens, slots=20, per_rank=5, name=name)
        assert torch.equal(maps[0], call(tokens=tokens, slots=20, per_rank=5)[0])


def test_active_ranks_keep_their_experts():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.lognormal(0, 1, (2, 32)) * 100)
    first, _, _ = call(tokens=tokens, slots=64, per_rank=8)
    alive = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1])
    algorithm = SglangAlgorithm(settings=SETTINGS, live_map=lambda: first, active_ranks=lambda: alive)
    second, _, _ = call(algorithm, tokens=tokens, slots=64, per_rank=8, name="elasticity_aware")
    kept = np.delete(np.arange(64), np.arange(24, 32))
    assert_stay_in_slots(first.numpy()[:, kept], second.numpy()[:, kept], 7)


def test_strategy_deepseek_equals_sglangs_deepseek():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.permutation(5000)[:48].reshape(2, 24))
    parity = SglangAlgorithm(settings=PolicySettings(strategy="deepseek"))
    phy2log, _, logcnt = call(parity, tokens=tokens, slots=32, per_rank=4, groups=4, nodes=2)
    expected = published_rebalance(tokens.double().numpy(), 32, 4, 2, 8)
    assert np.array_equal(phy2log.numpy(), expected[0])
    assert np.array_equal(logcnt.numpy(), expected[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"slots": 20, "per_rank": 3},
            "num_local_physical_experts = 3: expected a divisor of num_physical_experts = 20",
        ),
        ({"slots": 20, "per_rank": 0}, "num_local_physical_experts = 0: expected a divisor"),
        ({"slots": 12, "per_rank": 3}, "num_replicas = 12: expected at least 16 experts"),
    ],
)
def test_where_sglang_asserts_an_assertion_error_is_raised(arguments, message):
    with pytest.raises(AssertionError, match=message):
        call(tokens=torch.ones(1, 16), **arguments)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.ones(16), r"tokens_per_expert has shape \(16,\): expected \[layers, experts\]"),
        (torch.ones(1, 1, 1, 16), r"expected \[steps, layers, experts\]"),
        (torch.ones(0, 1, 16), r"tokens_per_expert has shape \(0, 1, 16\): expected \[steps, layers, experts\]"),
        (-torch.ones(2, 1, 16), "tokens_per_expert: expected finite values >= 0"),
        (torch.full((2, 1, 16), float("nan")), "tokens_per_expert: expected finite values >= 0"),
        (torch.full((2, 1, 16), float("inf")), "tokens_per_expert: expected finite values >= 0"),
    ],
)
def test_an_invalid_history_is_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        call(tokens=tokens, slots=20, per_rank=5)


@pytest.mark.parametrize("alive", [[1, 1, 1], [0, 0, 0, 0]])
def test_an_invalid_list_of_ranks_is_refused(alive):
    algorithm = SglangAlgorithm(settings=SETTINGS, active_ranks=lambda: torch.tensor(alive))
    with pytest.raises(PolicyInputError, match="expected one for each of 4 ranks, at least one active"):
        call(algorithm, tokens=torch.ones(1, 16), slots=20, per_rank=5, name="elasticity_aware")
