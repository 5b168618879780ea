"""Shards of an expert: their outputs add up to the whole expert's, and bad cuts are refused."""

import pytest
import torch

from eplb.errors import InputError
from eplb.runtime.weights.checkpoint import StateDict
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks
from eplb.runtime.weights.shards import Shard, shard_parts
from eplb.runtime.weights.weight_loading import load_experts

HIDDEN, INNER, COUNT, EXPERTS = 128, 256, 2, 3


def _checkpoint():
    generator = torch.Generator().manual_seed(0)
    stem = "model.layers.5.mlp.experts"
    tensors = {}
    for expert in range(EXPERTS):
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            tensors[f"{stem}.{expert}.{name}_proj.weight"] = torch.randn(shape, generator=generator) / 8
    return StateDict(tensors)


def _loaded(codec, shard):
    shape = ExpertWeightsShape(num_layers=1, num_slots=2, hidden_size=HIDDEN, intermediate_size=INNER // shard.count)
    weights = ExpertWeights(shape, codec, compute_dtype=torch.float32)
    load_experts(weights, _checkpoint(), torch.tensor([[2, 0]]).numpy(), EXPERTS, layer_ids=[5], shard=shard)
    return weights


@pytest.mark.parametrize("codec", [Dense(torch.float32), Fp8Blocks(), Fp4Blocks()], ids=lambda codec: codec.name)
def test_shards_read_from_a_checkpoint_add_up_to_the_whole_expert(codec):
    x, rows = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 2])
    whole = _loaded(codec, Shard()).forward(0, x, rows)
    shards = [_loaded(codec, Shard(index, COUNT)) for index in range(COUNT)]
    assert torch.allclose(sum(shard.forward(0, x, rows) for shard in shards), whole, atol=1e-4)
    assert not torch.allclose(2 * shards[0].forward(0, x, rows), whole, atol=1e-2)
    assert sum(shard.expert_bytes for shard in shards) == _loaded(codec, Shard()).expert_bytes


def test_cuts_through_a_block_of_scales_are_refused():
    parts = {"gate_up.weight": torch.zeros(2, 192, 64)}
    with pytest.raises(InputError, match="intermediate size 192 over 2 shards: expected a multiple of 2 x 128"):
        shard_parts(parts, Shard(0, 2), intermediate_size=192, block=Fp8Blocks.block)
    assert shard_parts(parts, Shard(1, 2), intermediate_size=192, block=1)["gate_up.weight"].shape == (2, 96, 64)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_shards_that_do_not_exist_are_refused(index, count):
    with pytest.raises(InputError, match=f"shard {index} of {count}"):
        Shard(index, count)
