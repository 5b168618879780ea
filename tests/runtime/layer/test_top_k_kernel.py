"""The router's choices in one kernel equal those of torch, in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch

from eplb.errors import InputError
from eplb.runtime import FusedGate, Launch, SigmoidGroupGate, SoftmaxGate, run_processes
from eplb.runtime.kernels.top_k import sigmoid_group_top_k_on_device, softmax_top_k_on_device
from eplb.runtime.layer.gate import GroupLimit, sigmoid_group_top_k, softmax_top_k

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def _wrong(_, argument):
    wrong = []
    for tokens, experts, top_k in ((7, 18, 3), (4, 256, 8), (1, 5, 5)):
        logits = torch.randn((tokens, experts), generator=torch.Generator().manual_seed(tokens))
        ids, weights = torch.empty((tokens, top_k), dtype=torch.int64), torch.empty((tokens, top_k))
        softmax_top_k_on_device(logits, ids, weights)
        expected = softmax_top_k(logits, top_k, normalise=True)
        if not torch.equal(ids, expected.expert_ids_TK) or not torch.allclose(weights, expected.weight_TK):
            wrong.append(f"{tokens} tokens, {experts} experts")
    ties = torch.zeros((1, 6))
    ids = torch.empty((1, 2), dtype=torch.int64)
    softmax_top_k_on_device(ties, ids, torch.empty((1, 2)))
    return wrong if ids.tolist() == [[0, 1]] else [*wrong, f"ties: {ids.tolist()}"]


def test_experts_and_weights_equal_those_of_torch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong, None) == [[]]


def _wrong_groups(_, argument):
    """Groups of sizes that are no powers of two, of one expert, without a limit, and equal scores."""
    wrong = []
    for tokens, experts, top_k, limit in (
        (7, 18, 4, GroupLimit(3, 2)),
        (5, 64, 8, GroupLimit(8, 4)),
        (3, 6, 2, GroupLimit(6, 3)),
        (2, 5, 5, GroupLimit(1, 1)),
    ):
        generator = torch.Generator().manual_seed(tokens)
        logits, bias = torch.randn((tokens, experts), generator=generator), torch.randn(experts, generator=generator)
        logits[0], bias = 0, torch.where(bias > 0, 0.25, -0.5)
        ids, weights = torch.empty((tokens, top_k), dtype=torch.int64), torch.empty((tokens, top_k))
        sigmoid_group_top_k_on_device(logits, bias, ids, weights, limit=limit, scale=2.5)
        expected = sigmoid_group_top_k(logits, bias, top_k, limit, scale=2.5)
        if not torch.equal(ids, expected.expert_ids_TK) or not torch.allclose(weights, expected.weight_TK):
            wrong.append(f"{tokens} tokens, {experts} experts, {limit}: {ids.tolist()}")
    return wrong


def test_a_choice_limited_by_groups_equals_that_of_torch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong_groups, None) == [[]]


GATES = (
    SoftmaxGate(torch.randn((12, 16), generator=torch.Generator().manual_seed(3)), 3),
    SigmoidGroupGate(
        torch.randn((12, 16), generator=torch.Generator().manual_seed(4)),
        torch.linspace(-1, 1, 12),
        4,
        GroupLimit(4, 2),
    ),
)


def _wrong_gates(_, argument):
    x, ids = torch.randn((9, 16), generator=torch.Generator().manual_seed(5)), torch.zeros(9, dtype=torch.int64)
    wrong = []
    for gate in GATES:
        found, expected = FusedGate(gate)(x, ids), gate(x, ids)
        if FusedGate(gate).reason or not torch.equal(found.expert_ids_TK, expected.expert_ids_TK):
            wrong.append(f"{gate}: ids")
        if not torch.allclose(found.weight_TK, expected.weight_TK):
            wrong.append(f"{gate}: weights")
    return wrong


def test_a_fused_gate_equals_its_gate(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong_gates, None) == [[]]


def _of_a_token_of_nan(_member, _):
    """The experts of a token of NaN, and whether the other tokens have theirs."""
    x = torch.randn((3, 16), generator=torch.Generator().manual_seed(5))
    x[1], ids, found = torch.nan, torch.zeros(3, dtype=torch.int64), []
    for gate in GATES:
        of_kernel, of_gate = FusedGate(gate)(x, ids).expert_ids_TK, gate(x, ids).expert_ids_TK
        found.append((sorted(of_kernel[1].tolist()), torch.equal(of_kernel[::2], of_gate[::2])))
    return found


def test_a_token_of_nan_chooses_experts_that_exist(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ((softmax, sigmoid),) = run_processes(Launch(1), _of_a_token_of_nan, None)
    assert softmax == ([0, 1, 2], True)
    assert sigmoid[1]
    assert len(set(sigmoid[0])) == 4
    assert set(sigmoid[0]) <= set(range(12))


def test_a_fused_gate_calls_its_gate_where_kernels_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, ids = torch.ones((2, 16)), torch.zeros(2, dtype=torch.int64)
    for gate in GATES:
        assert FusedGate(gate).reason == "tensors on cpu, the kernels need a GPU"
        assert torch.equal(FusedGate(gate)(x, ids).expert_ids_TK, gate(x, ids).expert_ids_TK)
    with pytest.raises(InputError, match="expected normalise = True"):
        FusedGate(SoftmaxGate(torch.ones((4, 16)), 2, normalise=False))
