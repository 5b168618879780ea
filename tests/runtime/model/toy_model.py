"""A stack of MoE blocks with the names and the calls of `transformers`, and its execution on two GPUs."""

import torch
from torch import nn

from eplb.core.problem import Plan
from eplb.runtime import RankGroup
from eplb.runtime.model.parallelize import parallelize
from eplb_traces import ModelShape
from tests.runtime.model.placements import placements

LAYERS, EXPERTS, TOP_K, HIDDEN, INNER = 2, 8, 2, 256, 128


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.top_k = TOP_K
        self.weight = nn.Parameter(torch.randn(EXPERTS, HIDDEN) / 4)

    def forward(self, x):
        logits = (x @ self.weight.T).float()
        weights, ids = logits.softmax(dim=-1).topk(TOP_K)
        return logits, weights, ids


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN) / 16)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER) / 16)
        self.act_fn = nn.SiLU()

    def forward(self, x, ids, weights):
        y = torch.zeros_like(x, dtype=torch.float32)
        for expert in range(EXPERTS):
            token, place = (ids == expert).nonzero(as_tuple=True)
            gate, up = (x[token].float() @ self.gate_up_proj[expert].float().T).chunk(2, dim=-1)
            rows = (self.act_fn(gate) * up) @ self.down_proj[expert].float().T
            y.index_add_(0, token, rows * weights[token, place, None])
        return y.to(x.dtype)


class OlmoeSparseMoeBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = Router(), Experts()

    def forward(self, x):
        _, weights, ids = self.gate(x)
        return self.experts(x, ids, weights)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.ModuleDict({"mlp": OlmoeSparseMoeBlock()}) for _ in range(LAYERS))


def run_on_gpus(member, exchange):
    """Relative error of each block with placed experts, before and after a migration, and the kernels' reason."""
    torch.manual_seed(0)
    model = Toy().bfloat16().to(member.device)
    blocks = [layer["mlp"] for layer in model.model.layers]
    x = torch.randn(40 + 13 * member.process, HIDDEN, device=member.device).bfloat16()
    expected = [block(x) for block in blocks]
    before, after = placements(LAYERS, EXPERTS, num_ranks=2)
    group = RankGroup.of(before.topology, member.process_group)
    plan = Plan(before, ModelShape(LAYERS, EXPERTS, TOP_K), "given")
    parallel = parallelize(model, plan, group, exchange=exchange)
    errors = []
    for placement in (before, after):
        parallel.migrate(placement)
        for block, truth in zip(blocks, expected, strict=True):
            with torch.no_grad():
                errors.append(float((block(x).float() - truth.float()).norm() / truth.float().norm()))
    return errors, parallel.experts.reason
