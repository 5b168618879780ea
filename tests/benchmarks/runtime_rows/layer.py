"""R9 to R11: a whole MoE layer of several ranks in one CUDA graph, from the router's GEMM to the output.

The variants of a case are replayed in turn, a barrier before each; the median of 15 is the maximum over ranks. "no FFN"
leaves the experts out. "NCCL" is all-gather and reduce-scatter with the same layout, expand and reduce kernels. The
error is that of 32 tokens against float32. All ranks draw the same weights for equal local slots.
"""

import statistics
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.distributed as dist

from eplb.core.topology import Topology
from eplb.runtime import (
    BufferSizes,
    CollectiveBuffers,
    ExchangeMode,
    FixedBuffers,
    FixedExchange,
    Member,
    RankGroup,
)
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.experts.candidates import BF16_FFNS, FP8_FFNS
from eplb.runtime.experts.grouped_ffn import GroupedFfn
from eplb.runtime.kernels.top_k import softmax_top_k_on_device

from .device_time import captured, launches, on_gpus, timed
from .ffn import exact, weights

HIDDEN, TOP_K, ROUNDS, CHECKED_TOKENS = 7168, 8, 15, 32
COLLECTIVES = "NCCL"


@dataclass(frozen=True)
class Case:
    """A layer: tokens of a rank, experts of all ranks (0: nine a rank), their type, FFNs, bar of two GPUs."""

    row: str
    tokens: int
    experts: int
    dtype: str
    ffns: tuple[GroupedFfn, ...]
    most_us: float


CASES = (
    Case("R11", 128, 0, "bf16", BF16_FFNS[3:5], 320),
    Case("R11", 128, 0, "fp8", FP8_FFNS[:2], 250),
    Case("R10", 128, 256, "bf16", BF16_FFNS[:1], 2700),
    Case("R10", 128, 256, "fp8", FP8_FFNS[:2], 1500),
    Case("R9", 4096, 256, "bf16", BF16_FFNS[5:7], 6000),
    Case("R9", 4096, 256, "fp8", FP8_FFNS[:2], 5300),
)


@dataclass(frozen=True)
class Result:
    """One variant of a case."""

    row: str
    tokens: int
    experts: int
    variant: str
    us: float
    launches: int
    error: float
    most_us: float


def measure(processes: int = 2, wanted: tuple[Case, ...] = CASES) -> list[Result]:
    """All cases; bars are those of two GPUs."""
    wanted = tuple(replace(case, experts=case.experts or 9 * processes) for case in wanted)
    answers = on_gpus("R9 to R11", processes, _measured, wanted)
    if not answers:
        return []
    slowest = [
        replace(of_ranks[0], us=max(one.us for one in of_ranks), error=max(one.error for one in of_ranks))
        for of_ranks in zip(*answers, strict=True)
    ]
    print("the slower rank:\n" + report(slowest), flush=True)
    return slowest


def _measured(member: Member, wanted: tuple[Case, ...]) -> list[Result]:
    """All cases on one rank."""
    results = []
    for case in wanted:
        found = _case(member, case)
        if member.process == 0:
            print(report(found), flush=True)
        results += found
        torch.cuda.empty_cache()
    return results


def _case(member: Member, case: Case) -> list[Result]:
    torch.manual_seed(member.process)
    is_small = case.tokens <= 512
    group = RankGroup.of(
        Topology(1, dist.get_world_size(), case.experts // dist.get_world_size()), member.process_group
    )
    exchange = FixedExchange.create(
        group,
        BufferSizes(case.tokens, TOP_K, HIDDEN),
        torch.bfloat16,
        member.device,
        mode=ExchangeMode.LOW_LATENCY if is_small else ExchangeMode.NORMAL,
        settings=KernelSettings(float8_wire=is_small),
    )
    collectives = CollectiveBuffers.create(
        group, BufferSizes(case.tokens, TOP_K, HIDDEN), torch.bfloat16, member.device
    )
    for buffers in (exchange, collectives):
        buffers.num_tokens.fill_(case.tokens)
    x_TH = torch.randn((case.tokens, HIDDEN), device=member.device).bfloat16()
    router_EH = (torch.randn((case.experts, HIDDEN), device=member.device) / HIDDEN**0.5).bfloat16()
    logits_TE = torch.empty((case.tokens, case.experts), device=member.device)
    parts = weights(case.experts // group.num_processes, case.dtype)

    def layer(ffn: GroupedFfn | None, buffers: FixedBuffers) -> torch.Tensor:
        torch.mm(x_TH, router_EH.T, out_dtype=torch.float32, out=logits_TE)
        softmax_top_k_on_device(logits_TE, buffers.slot_TK, buffers.weight_TK)
        rows_MH = buffers.dispatch(x_TH)
        return buffers.combine(rows_MH if ffn is None else ffn(parts, rows_MH, buffers.ends_S))

    variants: dict[str, tuple[GroupedFfn | None, FixedBuffers]] = {ffn.name: (ffn, exchange) for ffn in case.ffns}
    variants["no FFN"] = None, exchange
    variants |= {f"{COLLECTIVES}, {ffn.name}": (ffn, collectives) for ffn in case.ffns}
    variants[f"{COLLECTIVES}, no FFN"] = None, collectives
    graphs, errors, counts = {}, {}, {}
    for name, (ffn, buffers) in variants.items():
        layer(ffn, buffers)
        counts[name] = launches(partial(layer, ffn, buffers))
        torch.cuda.synchronize()
        dist.barrier()
        outputs: list[torch.Tensor] = []
        graphs[name] = captured(lambda ffn=ffn, buffers=buffers, outputs=outputs: outputs.append(layer(ffn, buffers)))
        graphs[name].replay()
        errors[name] = float("nan") if ffn is None else _error(outputs[0], x_TH, parts, buffers)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            times[name].append(timed(graph.replay))
    for buffers in (exchange, collectives):
        buffers.raise_on_error()
    results = []
    for name, (ffn, buffers) in variants.items():
        bar = case.most_us if ffn is not None and buffers is exchange and group.num_processes == 2 else float("nan")
        us = statistics.median(times[name])
        what = case.row, case.tokens, case.experts, f"{case.dtype} {name}"
        results.append(Result(*what, us, counts[name], errors[name], bar))
    return results


def _error(out: torch.Tensor, x: torch.Tensor, parts: dict[str, torch.Tensor], buffers: FixedBuffers) -> float:
    """Relative error of the first tokens."""
    truth = torch.zeros((CHECKED_TOKENS, HIDDEN), device=x.device)
    for token in range(CHECKED_TOKENS):
        for slot, weight in zip(buffers.slot_TK[token].tolist(), buffers.weight_TK[token].tolist(), strict=True):
            own = {name: part[slot % part.shape[0]] for name, part in parts.items()}
            truth[token] += weight * exact(own, x[token : token + 1].float())[0]
    return float((out[:CHECKED_TOKENS].float() - truth).norm() / truth.norm())


def report(results: list[Result]) -> str:
    """The results as a table."""
    lines = [
        f"{one.row:4} {one.tokens:5} tokens {one.experts:4} experts  {one.variant:60} {one.us:9.1f} us"
        f"  {one.launches:3} launches  error {one.error:.1e}  bar {one.most_us:.0f}"
        for one in results
    ]
    for case in dict.fromkeys(_case_of(one) for one in results):
        whole = [one for one in results if _case_of(one) == case and not one.variant.endswith("no FFN")]
        own = min(one.us for one in whole if COLLECTIVES not in one.variant)
        theirs = min(one.us for one in whole if COLLECTIVES in one.variant)
        named = ", ".join(map(str, case))
        lines.append(f"{named}: {own / theirs:.2f} x {COLLECTIVES} with the faster FFN in both (bar of R9 0.86)")
        library = [one.us for one in whole if COLLECTIVES in one.variant and one.variant.endswith("grouped_mm")]
        lines += [f"{named}: {own / us:.2f} x {COLLECTIVES} with grouped_mm" for us in library]
    return "\n".join(lines)


def _case_of(one: Result) -> tuple[str, int, int, str]:
    return one.row, one.tokens, one.experts, one.variant.split()[0]


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) for one in results]
