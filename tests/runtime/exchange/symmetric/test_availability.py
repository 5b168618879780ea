"""Why peer memory is not used: each reason on a GPU that is pretended, and the backend that is taken instead."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from eplb.core.topology import Topology
from eplb.runtime import BufferSizes, ExchangeLimits, RankGroup, choose_backend
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.experts.candidates import candidates, why_no_candidates
from eplb.runtime.weights.expert_weights import GateUpLayout
from eplb.runtime.weights.quantization import Dense

GPU = torch.device("cuda", 0)


@pytest.fixture
def pretend(monkeypatch):
    """Two GPUs of compute capability 9.0 that address each other, or what is given instead."""

    def machine(*, gpus=2, capability=(9, 0), peers=True, torch_version="2.11.0+cu130", missing="", interpret="0"):
        found = importlib.util.find_spec
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        monkeypatch.setattr(torch, "__version__", torch_version)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
        monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda own, other: peers)
        for module in ("exchange.symmetric.availability", "experts.candidates"):
            monkeypatch.setattr(
                f"eplb.runtime.{module}.find_spec",
                lambda name: None if name == missing else found("torch"),
            )

    return machine


CASES = {
    "GPU 0 has no peer access to GPU 1": {"peers": False},
    "GPU of compute capability 8.0, the kernels need 9.0": {"capability": (8, 0)},
    "GPU of compute capability 10.0, the kernels need 9.0": {"capability": (10, 0)},
    "2 processes and 1 GPUs": {"gpus": 1},
    "torch 2.5.1 has no symmetric memory": {"torch_version": "2.5.1"},
    "torch 2.11.0+cu130 has no symmetric memory": {"missing": "torch.distributed._symmetric_memory"},
    "Triton is not installed": {"missing": "triton"},
    "TRITON_INTERPRET is set, and Triton's interpreter does not run on a GPU": {"interpret": "1"},
}


def _choice(group, **changes):
    given = {"limits": ExchangeLimits(), "sizes": BufferSizes(8, 2, 16), "device": GPU} | changes
    return choose_backend(group, top_k=2, **given)


@pytest.mark.parametrize("reason", CASES)
def test_auto_takes_another_backend_and_gives_the_reason(pretend, reason):
    pretend(**CASES[reason])
    group = RankGroup(Topology(1, 2, 4), 2, 0)
    assert symmetric_refusal(group, GPU) == reason
    assert (_choice(group).name, _choice(group).reason) == ("allgather", f"not symmetric: {reason}")


def test_auto_takes_peer_memory_where_nothing_is_missing(pretend):
    pretend()
    group = RankGroup(Topology(1, 2, 4), 2, 0)
    assert (_choice(group).name, _choice(group).reason) == ("symmetric", "peer memory")
    for changes, reason in (
        ({"sizes": None}, "no buffer sizes were given"),
        ({"limits": ExchangeLimits(topk_scaling_factor=0.5)}, "it has no exchange limits"),
        ({"device": torch.device("cpu")}, "tensors on cpu, the kernels need a GPU"),
    ):
        assert _choice(group, **changes).reason == f"not symmetric: {reason}"
    assert _choice(RankGroup(Topology(1, 2, 4))).reason == "not symmetric: one process has no peer"
    assert symmetric_refusal(RankGroup(Topology(1, 64, 4), 64, 0), GPU) == "64 processes, at most 31"


@pytest.mark.parametrize(
    ("machine", "weights", "reason"),
    [
        ({"missing": "triton"}, {}, "Triton is not installed"),
        ({"capability": (8, 0)}, {}, "NVIDIA A100 is not of compute capability 9.0"),
        ({}, {"compute_dtype": torch.float16}, "rows are torch.float16"),
        ({}, {"layout": GateUpLayout.SPLIT}, "weights are dense, split: expected dense bf16, interleaved, or fp8"),
        ({}, {"shape": SimpleNamespace(hidden_size=192, intermediate_size=256)}, "hidden_size = 192 is not a multiple"),
        ({}, {}, ""),
    ],
)
def test_experts_take_the_plain_path_and_give_the_reason(pretend, machine, weights, reason):
    pretend(**machine)
    given = {
        "device": GPU,
        "compute_dtype": torch.bfloat16,
        "codec": Dense(torch.bfloat16),
        "layout": GateUpLayout.INTERLEAVED,
        "shape": SimpleNamespace(hidden_size=256, intermediate_size=256),
    }
    found = SimpleNamespace(**given | weights)
    assert why_no_candidates(found).startswith(reason)
    assert (candidates(found) == ()) == bool(reason)
