"""R6: the grouped FFN of a rank at DeepSeek-V3's sizes, every candidate, beside the dense rate of the same run.

Every variant is a CUDA graph of one call; a round replays the dense product and all variants in turn, and the medians
over rounds are printed. The error is that of a few rows of each slot against float32.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from eplb.runtime.experts.candidates import BF16_FFNS, FP8_FFNS
from eplb.runtime.experts.grouped_ffn import GroupedFfn
from eplb.runtime.weights.expert_weights import DOWN, GATE_UP, split
from eplb.runtime.weights.quantization import Fp8Blocks

HIDDEN, INNER = 7168, 2048
DENSE, ROUNDS, CHECKED_ROWS = 8192, 9, 3


@dataclass(frozen=True)
class Case:
    """Slots and their mean rows; the bar is a share of the dense rate or microseconds."""

    slots: int
    rows: int
    dense_share: float = 0.0
    most_us: float = 0.0


CASES = (Case(9, 3641, 0.85), Case(32, 1024, 0.78), Case(128, 256, 0.73), Case(9, 114, 0, 260), Case(128, 8, 0, 2600))


@dataclass(frozen=True)
class Result:
    """One variant of a case."""

    row: str
    slots: int
    rows: int
    variant: str
    us: float
    tflops: float
    dense_tflops: float
    weights_tb_s: float
    error: float
    bar: str
    reached: bool


def measure(wanted: Sequence[Case] = CASES, extra: Sequence[GroupedFfn] = ()) -> list[Result]:
    """All cases; `extra` are further bf16 candidates."""
    results = []
    for case in wanted:
        for name, ffns in (("bf16", (*BF16_FFNS, *extra)), ("fp8", FP8_FFNS)):
            parts = weights(case.slots, name)
            results += _measured(case, parts, ffns)
            del parts
            torch.cuda.empty_cache()
    return results


def report(results: Sequence[Result]) -> str:
    """The results as a table."""
    lines = [f"slots  rows {'variant':44} {'us':>8} {'TFLOP/s':>8} of dense  TB/s    error  bar"]
    for one in results:
        share = f"{one.tflops / one.dense_tflops:8.1%}"
        lines.append(
            f"{one.slots:5} {one.rows:5} {one.variant:44} {one.us:8.1f} {one.tflops:8.1f} {share}"
            f" {one.weights_tb_s:5.2f} {one.error:8.1e}  {one.bar} {'reached' if one.reached else 'missed'}"
        )
    return "\n".join(lines)


def as_dicts(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) for one in results]


def weights(slots: int, dtype: str) -> dict[str, torch.Tensor]:
    """Random weights of the experts of a rank, as `GroupedFfn` takes them."""
    torch.manual_seed(0)
    if dtype == "bf16":
        gate_up = torch.empty((slots, INNER // 8, 2, 8, HIDDEN), dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        down = torch.empty((slots, HIDDEN, INNER), dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        return {f"{GATE_UP}.weight": gate_up, f"{DOWN}.weight": down}
    parts: dict[str, list[torch.Tensor]] = {}
    for _ in range(slots):
        for name, shape in ((GATE_UP, (2, INNER, HIDDEN)), (DOWN, (HIDDEN, INNER))):
            stored = Fp8Blocks().encode(torch.empty(shape, device="cuda").normal_(0, 0.02))
            for part, tensor in stored.items():
                parts.setdefault(f"{name}.{part}", []).append(tensor)
    return {
        name: torch.stack([t.view(torch.uint8) for t in tensors]).view(tensors[0].dtype)
        for name, tensors in parts.items()
    }


def _measured(case: Case, parts: dict[str, torch.Tensor], ffns: Sequence[GroupedFfn]) -> list[Result]:
    total = case.slots * case.rows
    counts = np.random.default_rng(0).multinomial(total, np.full(case.slots, 1 / case.slots))
    ends = torch.tensor(np.cumsum(counts), dtype=torch.int32, device="cuda")
    x = torch.randn((total, HIDDEN), device="cuda").bfloat16()
    a, b = (torch.randn((DENSE, DENSE), device="cuda").bfloat16() for _ in range(2))
    calls: dict[str, Callable[[], torch.Tensor]] = {"dense": lambda: a @ b.T}
    calls |= {ffn.name: lambda ffn=ffn: ffn(parts, x, ends) for ffn in ffns}
    graphs, errors = {}, {}
    for name, call in calls.items():
        try:
            y = call()
            errors[name] = 0.0 if name == "dense" else _error(parts, x, counts, y)
            graphs[name] = _graph(call)
        except Exception as error:  # a variant that does not compile must not hide the others
            print(f"{case} {name}: {type(error).__name__} {str(error)[:300]}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            times[name].append(_microseconds(graph))
    medians = {name: statistics.median(found) for name, found in times.items()}
    dense = 2 * DENSE**3 / medians["dense"] * 1e-6
    weight_bytes = sum(part.numel() * part.element_size() for part in parts.values())
    results = []
    for name, us in medians.items():
        if name == "dense":
            continue
        tflops = 6 * HIDDEN * INNER * total / us * 1e-6
        reached = us <= case.most_us if case.most_us else tflops / dense >= case.dense_share
        bar = f"{case.most_us:.0f} us" if case.most_us else f"{case.dense_share:.0%}"
        speed = weight_bytes / us * 1e-6
        results.append(Result("R6", case.slots, case.rows, name, us, tflops, dense, speed, errors[name], bar, reached))
    print(report(results), flush=True)
    return results


def _error(parts: dict[str, torch.Tensor], x: torch.Tensor, counts: np.ndarray, y: torch.Tensor) -> float:
    """Relative error of the first and last rows of each slot."""
    wrong, whole, first = 0.0, 0.0, 0
    for slot, count in enumerate(counts.tolist()):
        if count:
            rows = [first + row for row in {0, count // 2, count - 1}]
            own = {name: part[slot] for name, part in parts.items()}
            truth = exact(own, x[rows].float())
            wrong += float((y[rows].float() - truth).square().sum())
            whole += float(truth.square().sum())
        first += count
    return float((wrong / whole) ** 0.5)


def exact(own: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Rows through one expert in float32."""
    if f"{DOWN}.scale" in own:
        gate_up = Fp8Blocks().decode(
            {"weight": own[f"{GATE_UP}.weight"], "scale": own[f"{GATE_UP}.scale"]}, torch.float32
        )
        down = Fp8Blocks().decode({"weight": own[f"{DOWN}.weight"], "scale": own[f"{DOWN}.scale"]}, torch.float32)
    else:
        gate_up, down = split(own[f"{GATE_UP}.weight"].float()), own[f"{DOWN}.weight"].float()
    return (torch.nn.functional.silu(x @ gate_up[0].T) * (x @ gate_up[1].T)) @ down.T


def _graph(call: Callable[[], torch.Tensor]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    return graph


def _microseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3
