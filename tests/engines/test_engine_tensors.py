"""The tensors of each engine: types, shapes and padding as in the table of `engine_tensors`, contents by other code."""

import builtins

import numpy as np
import pytest

import eplb
from eplb.engines.for_engine import for_engine
from eplb.errors import InputError, MissingExtraError, UnknownNameError

torch = pytest.importorskip("torch")
SHAPE = eplb.ModelShape(2, 4, moe_layer_ids=(1, 3), num_hidden_layers=5)
# Two ranks of 3 slots.
PLACEMENT = eplb.Placement([[0, 1, 3, 2, 1, 0], [3, 2, 1, 0, 3, 2]], 4, eplb.Topology(1, 2, 3))


def layout(rank=0, shape=SHAPE, placement=PLACEMENT):
    return for_engine(placement, ep_size=placement.topology.num_ranks, ep_rank=rank, model_shape=shape)


def assert_padded(log2phy, phy2log):
    """[L, E, X]: exactly the slots of each expert, ascending, then -1."""
    for layer, row in enumerate(phy2log.tolist()):
        for expert in range(log2phy.shape[1]):
            slots = [slot for slot, held in enumerate(row) if held == expert]
            assert log2phy[layer, expert].tolist() == slots + [-1] * (log2phy.shape[2] - len(slots))


@pytest.mark.parametrize(("engine", "columns"), [("deepseek", 2), ("vllm", 1024)])
def test_moe_layers_alone(engine, columns):
    found = layout(rank=1).torch(engine)
    assert found.physical_to_logical_map.tolist() == PLACEMENT.physical_to_logical_map.tolist()
    assert found.logical_to_physical_map.shape == (2, 4, columns)
    assert_padded(found.logical_to_physical_map, found.physical_to_logical_map)
    assert found.logical_replica_count.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert found.expert_map.tolist() == [[2, 1, 0, -1], [0, -1, 2, 1]]
    dtypes = [tensor.dtype for tensor in vars(found).values()]
    assert dtypes == [torch.int64, torch.int64, torch.int64, torch.int32]


def test_sglang_has_a_row_for_every_layer_and_a_column_for_every_slot():
    found = layout().torch("sglang")
    moe = PLACEMENT.physical_to_logical_map.tolist()
    assert found.physical_to_logical_map.tolist() == [moe[0], moe[0], moe[0], moe[1], moe[0]]
    assert found.logical_to_physical_map.shape == (5, 4, 6)
    assert_padded(found.logical_to_physical_map, found.physical_to_logical_map)
    assert found.logical_replica_count.tolist() == (found.logical_to_physical_map != -1).sum(dim=2).tolist()
    assert found.expert_map.shape == (5, 4)
    assert found.physical_to_logical_map.dtype == torch.int64


def test_sglang_requires_the_ids_of_dense_layers():
    hidden = eplb.ModelShape(2, 4, num_hidden_layers=5)
    with pytest.raises(InputError, match=r"a row for each of 5 layers, and which 2 of them .*: give model_shape"):
        layout(shape=hidden).torch("sglang")
    with pytest.raises(InputError, match="the last MoE layer is 3: give model_shape with num_hidden_layers"):
        layout(shape=eplb.ModelShape(2, 4, moe_layer_ids=(1, 3))).torch("sglang")
    bare = layout(shape=eplb.ModelShape(2, 4)).torch("sglang")
    assert bare.physical_to_logical_map.shape == (2, 6)


@pytest.mark.parametrize("rank", [0, 1])
def test_ascend_sends_a_rank_to_one_replica(rank):
    found = layout(rank).torch("ascend")
    # The replica is rank modulo count: of 0 in layer 0 slots 0 and 5, of 1 slots 1 and 4, of 2 slot 3, of 3 slot 2.
    expected = [[[0, 1, 3, 2], [3, 2, 1, 0]], [[5, 4, 3, 2], [3, 2, 5, 4]]][rank]
    assert found.logical_to_physical_map.tolist() == expected
    assert {tensor.dtype for tensor in vars(found).values()} == {torch.int32}


def test_ascend_refuses_a_duplicate_expert():
    doubled = eplb.Placement([[0, 0, 1, 2, 3, 1]], 4, eplb.Topology(1, 2, 3))
    with pytest.raises(InputError, match="layer 0, slot 1 duplicates an expert of its rank: vllm-ascend would not"):
        layout(shape=None, placement=doubled).torch("ascend")


def test_vllm_allows_1024_replicas():
    many = eplb.Placement(np.zeros((1, 1025), np.int64), 1, eplb.Topology(1, 1025, 1))
    with pytest.raises(InputError, match="an expert has 1025 replicas: expected at most 1024"):
        layout(shape=None, placement=many).torch("vllm")


def test_tensors_are_the_callers_own():
    one = layout()
    one.torch("vllm").physical_to_logical_map[:] = -1
    assert one.torch("vllm").physical_to_logical_map.min() == 0


def test_an_unknown_engine_is_refused():
    with pytest.raises(
        UnknownNameError, match="unknown engine 'trtllm': expected one of ascend, deepseek, sglang, vllm"
    ):
        layout().torch("trtllm")


def test_without_torch_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(MissingExtraError, match="making an engine's tensors needs the extra 'runtime'"):
        layout().torch("vllm")
