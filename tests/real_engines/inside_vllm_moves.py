"""vLLM moves real weights between our plans, and plans with our policy, over gloo processes; vLLM 0.32.0.

Exercised, on 2 and 4 processes: `rearrange_expert_weights_inplace` with its torch.distributed communicator on the CPU,
with and without a mapping of ranks as in elastic expert parallelism, and the whole synchronous path of `EplbState`:
`add_model` with its choice in `EPLB_POLICIES`, `rearrange`, the maps that it commits; vLLM makes the process groups.
Stubbed besides `engine_import`: the model is a namespace that holds the weights; `enable_eplb` is set after the
configuration's own check, which demands a GPU; page-locked memory is off; `torch.Event`, which times on a GPU, times
nothing.
"""

import types

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import prepare

prepare("vllm")

from vllm.config import DeviceConfig, ParallelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.config.parallel import EPLBConfig  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.distributed.eplb import eplb_state  # noqa: E402
from vllm.distributed.eplb.eplb_communicator import create_eplb_communicator  # noqa: E402
from vllm.distributed.eplb.eplb_state import EplbState  # noqa: E402
from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace  # noqa: E402

from eplb.engines.policy import PolicySettings  # noqa: E402
from eplb.engines.vllm import VllmPolicy, register  # noqa: E402
from tests.real_engines.our_plans import NUM_EXPERTS, NUM_LAYERS, a_load, a_plan, doubled  # noqa: E402
from tests.real_engines.processes import run_ranks  # noqa: E402

SHAPES = {torch.float32: (8, 5), torch.bfloat16: (6,), torch.uint8: (16, 3)}  # of one expert, by type of its numbers


def expert_weights(layer, expert):
    """Random bytes of one expert, the same wherever it is made: NaNs and denormals too."""
    rng = np.random.default_rng((layer, expert))
    parts = []
    for dtype, shape in SHAPES.items():
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        raw = torch.from_numpy(rng.integers(0, 256, num_bytes, dtype=np.uint8))
        parts.append(raw.view(dtype).reshape(shape))
    return parts


def rank_weights(phy2log, rank, slots_per_rank):
    """[L][weights] of [slots, ...] as a rank has them under a map."""
    first = rank * slots_per_rank
    layers = []
    for layer, row in enumerate(phy2log[:, first : first + slots_per_rank].tolist()):
        experts = [expert_weights(layer, expert) for expert in row]
        layers.append([torch.stack(parts) for parts in zip(*experts, strict=True)])
    return layers


def num_wrong(weights, phy2log, rank):
    """Slots of a rank in which any byte is not that of the expert that the map names; -1 in the map counts as right."""
    slots_per_rank = weights[0][0].shape[0]
    wrong = 0
    for layer, parts in enumerate(weights):
        for slot in range(slots_per_rank):
            expert = int(phy2log[layer, rank * slots_per_rank + slot])
            if expert < 0:
                continue
            right = expert_weights(layer, expert)
            pairs = zip(parts, right, strict=True)
            wrong += any(not torch.equal(a[slot].view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)
    return wrong


def join(rank, num_ranks, file):
    """Let vLLM make its groups of processes; its configuration."""
    eplb = EPLBConfig(communicator="torch_nccl", use_async=False, window_size=2)
    parallel = ParallelConfig(tensor_parallel_size=num_ranks, distributed_executor_backend="mp", eplb_config=eplb)
    config = VllmConfig(parallel_config=parallel, device_config=DeviceConfig("cpu"))
    config.parallel_config.enable_expert_parallel = config.parallel_config.enable_eplb = True
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(num_ranks, rank, f"file://{file}", rank, backend="gloo")
        parallel_state.initialize_model_parallel(num_ranks, backend="gloo")
    return config.parallel_config


def move(rank, num_ranks, file, before, after, rank_mapping=None):
    """Wrong slots under `after` and under `before`, once vLLM has moved the weights."""
    join(rank, num_ranks, file)
    group = parallel_state.get_eplb_group()
    weights = rank_weights(before, rank, before.shape[1] // num_ranks)
    buffer = [torch.empty_like(part) for part in weights[0]]
    communicator = create_eplb_communicator(group, "torch_nccl", weights, buffer)
    old, new = torch.from_numpy(before), torch.from_numpy(after)
    rearrange_expert_weights_inplace(
        old, new, weights, buffer, group.cpu_group, communicator, rank_mapping=rank_mapping
    )
    if rank_mapping is not None:  # the new map numbers the ranks that stay
        rank = rank_mapping[rank]
        return (num_wrong(weights, after, rank) if rank >= 0 else 0), -1
    return num_wrong(weights, after, rank), num_wrong(weights, before, rank)


def as_int64(placement):
    return placement.physical_to_logical_map.astype(np.int64)


@pytest.mark.parametrize(("num_ranks", "slots_per_rank"), [(2, 9), (2, 12), (4, 4), (4, 7)])
def test_weights_are_right_after_moving_from_one_plan_to_another(num_ranks, slots_per_rank):
    before, after = (as_int64(a_plan(num_ranks, slots_per_rank=slots_per_rank, seed=s).placement) for s in (1, 2))
    wrong = run_ranks(move, num_ranks, before, after)
    assert [now for now, _ in wrong] == [0] * num_ranks
    changed = (before != after).reshape(NUM_LAYERS, num_ranks, -1).sum(axis=(0, 2)).tolist()
    assert [then for _, then in wrong] == changed  # every slot that changes really got other bytes
    assert min(changed) > 0


def test_a_double_on_a_rank_is_filled_twice():
    before = as_int64(a_plan(2, slots_per_rank=12, seed=1).placement)
    after = as_int64(doubled(a_plan(2, slots_per_rank=12, seed=2).placement))
    assert [now for now, _ in run_ranks(move, 2, before, after)] == [0, 0]


def test_ranks_that_leave_hand_their_experts_to_a_plan_for_the_others():
    # 4 ranks of 9 slots; ranks 1 and 3 leave, so the plan is for 2 ranks of 9 slots: 18 >= 16 experts.
    before = as_int64(a_plan(4, slots_per_rank=9, seed=1).placement)
    after = as_int64(a_plan(2, slots_per_rank=9, seed=2).placement)
    wrong = run_ranks(move, 4, before, after, {0: 0, 1: -1, 2: 1, 3: -1})
    assert [now for now, _ in wrong] == [0] * 4


def tell(rank, num_ranks, file, before, after):
    return num_wrong(rank_weights(before, rank, before.shape[1] // num_ranks), after, rank)


def test_weights_that_did_not_move_are_seen():
    before, after = (as_int64(a_plan(2, slots_per_rank=9, seed=s).placement) for s in (1, 2))
    changed = (before != after).reshape(NUM_LAYERS, 2, -1).sum(axis=(0, 2)).tolist()
    assert run_ranks(tell, 2, before, after) == changed
    assert min(changed) > 0


class NoEvent:
    """`torch.Event` without a device."""

    def __init__(self, **_):
        """Times nothing."""

    def record(self): ...

    def synchronize(self): ...

    def elapsed_time(self, _):
        return 0.0


def torch_without_events():
    substitute = types.ModuleType("torch")
    substitute.__dict__.update(torch.__dict__, Event=NoEvent)
    return substitute


def replan(rank, num_ranks, file, slots_per_rank, windows, settings):
    """After each window: vLLM's maps, the slots that are wrong under them; the policy that vLLM took, by name."""
    parallel = join(rank, num_ranks, file)
    if settings is not None:
        register(VllmPolicy(settings=settings))
    eplb_state.PIN_MEMORY = False
    eplb_state.torch = torch_without_events()
    num_slots = num_ranks * slots_per_rank
    redundant = num_slots - NUM_EXPERTS
    first = EplbState.build_initial_global_physical_to_logical_map(NUM_EXPERTS, redundant)
    weights = rank_weights(np.array([first] * NUM_LAYERS), rank, slots_per_rank)
    model = types.SimpleNamespace(
        num_routed_experts=NUM_EXPERTS, num_logical_experts=NUM_EXPERTS, num_redundant_experts=redundant,
        num_physical_experts=num_slots, num_local_physical_experts=slots_per_rank, num_moe_layers=NUM_LAYERS,
        num_expert_groups=4, expert_weights=weights, moe_layers=[], set_eplb_state=lambda *_: None,
    )  # fmt: skip
    engine = EplbState(parallel, torch.device("cpu"))
    engine.add_model(model, types.SimpleNamespace(model="model", compute_hash=lambda: "hash"))
    state = engine.model_states["hash"]
    seen = []
    for tokens in windows:
        # Every rank counts `tokens`, all on the first copy of each expert, in one of the window's two steps.
        state.expert_load_window.zero_()
        log2phy = state.logical_to_physical_map[:, :, 0]
        state.expert_load_window[0].scatter_(1, log2phy, torch.from_numpy(tokens).int())
        engine.rearrange()
        phy2log = state.physical_to_logical_map.clone()
        maps = (phy2log, state.logical_to_physical_map.clone(), state.logical_replica_count.clone())
        seen.append((*(m.numpy() for m in maps), num_wrong(weights, phy2log, rank)))
    policy = engine.policy
    return seen, policy.__name__ if isinstance(policy, type) else type(policy).__name__


@pytest.mark.parametrize(("num_ranks", "slots_per_rank"), [(2, 12), (4, 6)])
def test_the_engine_replans_with_our_policy(num_ranks, slots_per_rank):
    settings = PolicySettings(strategy="incremental", target=1.02, trigger=1.05)
    windows = [a_load(1).tokens[0], a_load(1).tokens[0], a_load(2).tokens[0]]
    found = run_ranks(replan, num_ranks, slots_per_rank, windows, settings)
    assert {policy for _, policy in found} == {"VllmPolicy"}
    policy = VllmPolicy(settings=settings)
    redundant = num_ranks * slots_per_rank - NUM_EXPERTS
    old = torch.tensor([EplbState.build_initial_global_physical_to_logical_map(NUM_EXPERTS, redundant)] * NUM_LAYERS)
    for step, tokens in enumerate(windows):
        weight = torch.from_numpy(tokens * num_ranks).int()  # vLLM sums over ranks
        expected = policy.rebalance_experts(weight, old.shape[1], 4, 1, num_ranks, old.clone())
        log2phy, logcnt = eplb_state.compute_logical_maps(expected, NUM_EXPERTS)
        for seen, _ in found:
            np.testing.assert_array_equal(seen[step][0], expected)
            np.testing.assert_array_equal(seen[step][1][:, :, : log2phy.shape[2]], log2phy)
            assert (seen[step][1][:, :, log2phy.shape[2] :] == -1).all()
            np.testing.assert_array_equal(seen[step][2], logcnt)
            assert seen[step][3] == 0
        old = expected
    maps = [seen[0] for seen in found[0][0]]
    assert np.array_equal(maps[0], maps[1])  # the same load again: nothing moves
    assert not np.array_equal(maps[1], maps[2])


def test_without_register_the_engine_plans_alone():
    found = run_ranks(replan, 2, 12, [a_load(1).tokens[0]], None)
    assert {policy for _, policy in found} == {"DefaultEplbPolicy"}
    assert [seen[0][3] for seen, _ in found] == [0, 0]
