"""The router's choices in one kernel equal those of torch, in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch

from eplb.runtime import Launch, run_processes
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
