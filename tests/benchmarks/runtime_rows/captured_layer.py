"""L1: a whole MoE layer of one process in one CUDA graph, beside the same layer launched eagerly.

Router GEMM, softmax, top-8, replica choice, rows, grouped FFN, weighted sum; 128 experts on one GPU, bf16, uniform
routing.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime import (
    CapturedLayers,
    ExpertWeights,
    ExpertWeightsShape,
    GateUpLayout,
    MoeLayer,
    PlacementTables,
    RankGroup,
    SoftmaxGate,
    StaticRows,
    TimedExperts,
    TokenSource,
)
from eplb.runtime.layer.captured import masked_layer

HIDDEN, INNER, EXPERTS, TOP_K, REPEATS = 7168, 2048, 128, 8, 9


@dataclass(frozen=True)
class Result:
    """One number of tokens."""

    row: str
    tokens: int
    replay_us: float
    eager_us: float
    ffn: str
    ffn_us: float


def measure() -> list[Result]:
    """Decode and prefill sizes."""
    placement = Placement([range(EXPERTS)], EXPERTS, Topology(1, 1, EXPERTS))
    group, tables = RankGroup(placement.topology), PlacementTables(placement, device="cuda", max_replicas=1)
    shape = ExpertWeightsShape(num_layers=1, num_slots=EXPERTS, hidden_size=HIDDEN, intermediate_size=INNER)
    weights = ExpertWeights(shape, device="cuda", layout=GateUpLayout.INTERLEAVED)
    for part in weights.layer_parts(0).values():
        part.normal_(0, 0.02)
    gate = SoftmaxGate(torch.randn((EXPERTS, HIDDEN), device="cuda").bfloat16(), TOP_K)
    results = []
    for tokens in (128, 4096):
        experts = TimedExperts(weights)
        layer = MoeLayer(0, gate, tables, group, StaticRows(group), experts)
        source = TokenSource.consecutive(0, [tokens], "cuda")
        x, ids = torch.randn((tokens, HIDDEN), device="cuda").bfloat16(), torch.arange(tokens, device="cuda")
        captured, used = CapturedLayers([layer], source, x), torch.tensor(tokens, device="cuda")
        replay = _microseconds(lambda captured=captured, x=x, ids=ids: captured(x, ids))
        eager = _microseconds(
            lambda layer=layer, x=x, ids=ids, source=source, used=used: masked_layer(layer, x, ids, source, used)
        )
        (trial,) = experts.trials.values()
        name = trial.chosen.name
        results.append(Result("L1", tokens, replay, eager, name, trial.seconds[name] * 1e6))
    for one in results:
        print(
            f"{one.tokens:5} tokens: one graph {one.replay_us:8.1f} us, eager {one.eager_us:8.1f} us; "
            f"FFN {one.ffn_us:8.1f} us ({one.ffn})",
            flush=True,
        )
    return results


def as_dicts(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) for one in results]


def _microseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3 + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[3:])
