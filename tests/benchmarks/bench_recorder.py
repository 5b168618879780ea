"""What recording costs a running model: prefill and decode passes with and without `record`.

    PYTHONPATH=.:traces python tests/benchmarks/bench_recorder.py [--blocks 9] [--passes 20]

The model is plain torch (bf16 on a GPU): attention, and MoE blocks whose router is shaped as in transformers, with
padded batched experts, so that no pass waits for the host on its own account. A block is so many passes and one
synchronisation; blocks with and without recording alternate, and the medians are compared. The thread that writes runs
within the timed block; what is left to write after it is the column "close". Without a GPU the sizes are small and say
nothing about one.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from eplb_traces import ModelShape, read_trace
from eplb_traces.recorder.recorder import record


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    hidden: int
    layers: int
    experts: int
    top_k: int
    expert_width: int
    prefill: tuple[int, int]
    decodes: tuple[tuple[int, int], ...]
    """(requests, tokens of each in the cache)"""


GPU = Size(2048, 32, 128, 8, 768, prefill=(8, 1024), decodes=((256, 1024), (256, 64), (8, 64)))
CPU = Size(64, 4, 8, 2, 32, prefill=(2, 64), decodes=((8, 64),))
HEAD = 64


class Router(nn.Module):
    """Tokens [T, H] to logits [T, E], weights [T, K] and ids [T, K], as transformers' routers return them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.top_k = size.top_k
        self.weight = nn.Parameter(torch.randn(size.experts, size.hidden) * size.hidden**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = functional.linear(x, self.weight)
        weights, ids = logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(dim=-1, keepdim=True), ids


class Experts(nn.Module):
    """Two matrices an expert, for tokens [T, H]; beyond twice an expert's mean they are dropped: shapes are known."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(size.experts, size.hidden, size.expert_width) * size.hidden**-0.5)
        self.down = nn.Parameter(torch.randn(size.experts, size.expert_width, size.hidden) * size.expert_width**-0.5)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        num_experts, (num_tokens, top_k) = len(self.up), ids.shape
        capacity = -(-2 * num_tokens * top_k // num_experts)
        expert, order = ids.reshape(-1).sort(stable=True)
        first = torch.searchsorted(expert, torch.arange(num_experts, device=expert.device))
        place = torch.arange(len(expert), device=expert.device) - first[expert]
        slot = torch.where(place < capacity, expert * capacity + place, num_experts * capacity)
        token = order // top_k
        padded = x.new_zeros(num_experts * capacity + 1, x.shape[1])
        padded[slot] = x[token]
        inner = functional.silu(torch.bmm(padded[:-1].view(num_experts, capacity, -1), self.up))
        outer = torch.bmm(inner, self.down).flatten(0, 1)
        outer = torch.cat([outer, outer.new_zeros(1, outer.shape[1])])[slot]
        weighted = outer * weights.reshape(-1)[order, None].to(outer.dtype)
        return torch.zeros_like(x).index_add_(0, token, weighted)


class Block(nn.Module):
    """What the recorder looks for: children `gate` and `experts`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate = Router(size)
        self.experts = Experts(size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        _, weights, ids = self.gate(tokens)
        return self.experts(tokens, ids, weights).view_as(x)


class Layer(nn.Module):
    """Attention, over a given cache where there is one, and a MoE block."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.qkv = nn.Linear(size.hidden, 3 * size.hidden, bias=False)
        self.out = nn.Linear(size.hidden, size.hidden, bias=False)
        self.mlp = Block(size)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        normed = functional.rms_norm(x, x.shape[-1:])
        query, key, value = (
            part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in self.qkv(normed).chunk(3, dim=-1)
        )
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(functional.rms_norm(x, x.shape[-1:]))


class Decoder(nn.Module):
    """Token ids in, hidden states out."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1024, size.hidden)
        self.layers = nn.ModuleList([Layer(size) for _ in range(size.layers)])

    def forward(
        self, input_ids: Tensor, cache: tuple[Tensor, Tensor] | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, cache)
        return x


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=9, help="timed blocks of each kind")
    parser.add_argument("--passes", type=int, default=20, help="passes of a block")
    words = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    device, size = ("cuda", GPU) if has_gpu else ("cpu", CPU)
    name = torch.cuda.get_device_name(0) if has_gpu else "CPU, one thread: the numbers say nothing about a GPU"
    torch.set_num_threads(1 if not has_gpu else torch.get_num_threads())
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    print(
        f"{size.layers} layers, hidden {size.hidden}, {size.experts} experts of {size.expert_width}, top-{size.top_k}; "
        f"medians of {words.blocks} blocks of {words.passes} passes"
    )
    torch.manual_seed(0)
    model = Decoder(size).to(device, torch.bfloat16 if has_gpu else torch.float32).eval()
    print(f"{'pass':24} {'tokens':>7} {'ms without':>11} {'ms with':>9} {'overhead %':>11} {'close ms':>9}")
    with torch.inference_mode():
        for phase, one_pass, tokens in _phases(model, size, device):
            plain, recorded, close = _measured(model, size, one_pass, words.blocks, words.passes)
            overhead = 100 * (recorded / plain - 1)
            print(
                f"{phase:24} {tokens:7} {1e3 * plain:11.3f} {1e3 * recorded:9.3f} {overhead:11.2f} {1e3 * close:9.1f}"
            )


def _phases(model: Decoder, size: Size, device: str) -> list[tuple[str, Callable[[], object], int]]:
    """(name, a pass, its tokens)"""
    ids = torch.randint(0, 1024, size.prefill, device=device)
    mask = torch.ones_like(ids)
    rows, columns = size.prefill
    return [
        (f"prefill {rows} x {columns}", lambda: model(ids), ids.numel()),
        (f"prefill {rows} x {columns}, mask", lambda: model(ids, attention_mask=mask), ids.numel()),
        *(_decode(model, size, device, requests, length) for requests, length in size.decodes),
    ]


def _decode(
    model: Decoder, size: Size, device: str, requests: int, length: int
) -> tuple[str, Callable[[], object], int]:
    last = torch.randint(0, 1024, (requests, 1), device=device)
    dtype = model.embedding.weight.dtype
    keys = torch.randn(requests, size.hidden // HEAD, length, HEAD, device=device, dtype=dtype)
    return f"decode {requests} after {length}", lambda: model(last, cache=(keys, keys)), requests


def _measured(
    model: Decoder, size: Size, one_pass: Callable[[], object], blocks: int, passes: int
) -> tuple[float, float, float]:
    """Seconds of a pass without and with recording, and of the end of a recording."""
    shape = ModelShape(size.layers, size.experts, size.top_k)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        for recorded in (None, path):  # warm up both ways
            _block(model, shape, one_pass, passes, recorded)
        plain, with_record = [], []
        for _ in range(blocks):
            plain.append(_block(model, shape, one_pass, passes, None))
            with_record.append(_block(model, shape, one_pass, passes, path))
            assert read_trace(path).num_tokens % passes == 0  # the file is whole
    return (
        statistics.median(seconds for seconds, _ in plain),
        statistics.median(seconds for seconds, _ in with_record),
        statistics.median(close for _, close in with_record),
    )


def _block(
    model: Decoder, shape: ModelShape, one_pass: Callable[[], object], passes: int, path: Path | None
) -> tuple[float, float]:
    """Seconds of a pass, and of what follows the last one."""
    with nullcontext() if path is None else record(model, path, shape=shape):
        _wait()
        started = time.perf_counter()
        for _ in range(passes):
            one_pass()
        _wait()
        ended = time.perf_counter()
    return (ended - started) / passes, time.perf_counter() - ended


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
