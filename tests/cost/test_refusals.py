"""Sizes, configurations and calibrations that no step can be predicted from are refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eplb.cost import Batch, model_sizes, named_calibration, read_model_config
from eplb.cost.links import Link
from eplb.errors import FormatError, InputError, UnknownNameError

CONFIG = {
    "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_layer_freq": 0}, r"\$: a MoE layer every 0 layers: expected >= 1"),
        ({"first_k_dense_replace": 4}, r"\$: none of 4 layers has experts"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quant_method = 'awq': expected one of fp8, mxfp4"),
        ({"torch_dtype": "float128"}, r"torch_dtype = 'float128': expected one of bfloat16, float16, float32"),
        ({"num_experts_per_tok": 9}, r"\$: top_k = 9: expected at most num_experts = 8"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_configurations(tmp_path, change, message, nested):
    path = tmp_path / "config.json"
    good, wrong = ({"text_config": one} if nested else one for one in (CONFIG, {**CONFIG, **change}))
    path.write_text(json.dumps(good))
    assert (read_model_config(path).num_moe_layers, read_model_config(path).dtype) == (4, "bf16")
    path.write_text(json.dumps(wrong))
    with pytest.raises(FormatError, match=message.replace(r"\$:", r"\$\.text_config:") if nested else message):
        read_model_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_moe_layers": 0}, "num_moe_layers = 0: expected >= 1"),
        ({"num_shared_experts": -1}, "num_shared_experts = -1: expected >= 0"),
        ({"dtype": "int3"}, "unknown type of weights 'int3'"),
    ],
)
def test_sizes(change, message):
    model = model_sizes("deepseek-v3")
    with pytest.raises(InputError, match=message):
        replace(model, **change)
    with pytest.raises(UnknownNameError, match="unknown type of weights 'int3'"):
        model.expert_bytes("int3")


def test_calibrations_and_batches():
    gpu = named_calibration("h100")
    with pytest.raises(InputError, match="expected the FFN of at least one type"):
        replace(gpu, ffn={})
    with pytest.raises(InputError, match="memory_bytes = 0: expected finite and > 0"):
        replace(gpu, memory_bytes=0)
    with pytest.raises(InputError, match="latency_s = -1: expected finite and >= 0"):
        Link(100.0, -1, "assumed")
    with pytest.raises(InputError, match=r"source_tokens has shape \(2, 2\): expected \[layers, ranks, experts\]"):
        Batch(np.ones((2, 2), dtype=np.int64), 1.0)
