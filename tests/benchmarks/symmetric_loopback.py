"""The exchange kernels on one GPU: virtual ranks on streams of their own, checked against torch, and timed in loopback.

    PYTHONPATH=.:traces python -m tests.benchmarks.symmetric_loopback

Times are loopback: both ranks share the memory and the SMs of one GPU, and nothing crosses a wire.
"""

import statistics
import sys
import time
import traceback

import torch

from eplb.errors import EplbError
from eplb.runtime.exchange.expert_rows import expert_rows, weighted_sum
from eplb.runtime.exchange.symmetric.memory import memory_in_process
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.exchange.symmetric.warm_up import warm_up, warm_up_low_latency
from tests.runtime.exchange.symmetric.virtual_cases import rounded_to_float8

DEVICE = "cuda"


class Ranks:
    """P virtual ranks of one GPU: buffers of fixed addresses, one stream each."""

    def __init__(self, num_ranks, capacity, *, top_k=8, hidden=7168, experts=256, fp8=False, fixed=False, timeout=2.0):
        self.P, self.T, self.K, self.H, self.E = num_ranks, capacity, top_k, hidden, experts
        shape = RegionShape(num_ranks, capacity, top_k, hidden, 2, fixed)
        first_slot = tuple(rank * experts // num_ranks for rank in range(num_ranks + 1))
        memories = memory_in_process(num_ranks, shape.num_bytes, DEVICE)
        self.states = [RankState.create(memory, shape, first_slot, timeout_s=timeout) for memory in memories]
        self.settings = KernelSettings(float8_wire=fp8).shared_by(num_ranks)
        self.streams = [torch.cuda.Stream() for _ in range(num_ranks)]
        self.scale = torch.randint(-3, 4, (experts,), device=DEVICE).float()
        self.x = [torch.zeros((capacity, hidden), dtype=torch.bfloat16, device=DEVICE) for _ in self.states]
        self.slots = [torch.full((capacity, top_k), -1, dtype=torch.int64, device=DEVICE) for _ in self.states]
        self.weights = [torch.zeros((capacity, top_k), device=DEVICE) for _ in self.states]
        self.out = [torch.zeros_like(x) for x in self.x]
        self.rows = [torch.zeros((s.max_rows, hidden), dtype=torch.bfloat16, device=DEVICE) for s in self.states]
        self.layouts = [ExchangeLayout.allocate(*parts) for parts in zip(self.states, self.slots, strict=True)]
        self.epoch = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.numbers = torch.arange(self.states[0].max_rows, dtype=torch.int32, device=DEVICE)

    def fill(self, tokens, *, masked=0.05, real=False):
        """New tokens, routing and counts, at the same addresses."""
        for rank, count in enumerate(tokens):
            slots = torch.rand((self.T, self.E), device=DEVICE).topk(self.K).indices
            slots[torch.rand(slots.shape, device=DEVICE) < masked] = -1
            self.slots[rank].copy_(slots)
            shape = (self.T, self.H)
            self.x[rank].copy_(
                torch.randn(shape, device=DEVICE) if real else torch.randint(-4, 5, shape, device=DEVICE)
            )
            weights = torch.rand(slots.shape, device=DEVICE)
            self.weights[rank].copy_(weights if real else (weights * 8).round() / 8)
            self.layouts[rank].num_tokens.fill_(count)
        self.tokens = tokens

    def poison(self):
        for state, rows, out in zip(self.states, self.rows, self.out, strict=True):
            state.poison()
            rows.fill_(float("nan"))
            out.fill_(float("nan"))

    def parts(self, rank):
        return self.states[rank], self.layouts[rank]

    def plan(self, rank):
        from eplb.runtime.kernels.normal_mode import make_layout, publish_choices

        publish_choices(*self.parts(rank), self.weights[rank], self.epoch)
        make_layout(*self.parts(rank))

    def dispatch(self, rank):
        from eplb.runtime.kernels.normal_mode import dispatch_rows

        dispatch_rows(*self.parts(rank), self.settings, self.x[rank], self.rows[rank])

    def experts(self, rank):
        """Multiply every row by the number of its slot, without knowing how many there are."""
        slot = torch.searchsorted(self.layouts[rank].offs_S, self.numbers, right=True)
        own = self.scale[self.states[rank].first_slot[rank] : self.states[rank].first_slot[rank + 1]]
        self.rows[rank].mul_(torch.cat([own, own[:1]])[slot][:, None].bfloat16())

    def combine(self, rank):
        from eplb.runtime.kernels.normal_mode import combine_rows

        combine_rows(*self.parts(rank), self.settings, self.rows[rank], self.out[rank])

    def low_latency_dispatch(self, rank):
        from eplb.runtime.kernels.low_latency import dispatch_low_latency

        weights, x, rows = self.weights[rank], self.x[rank], self.rows[rank]
        dispatch_low_latency(*self.parts(rank), weights, self.epoch, x, rows, settings=self.settings)

    def low_latency_combine(self, rank):
        from eplb.runtime.kernels.low_latency import combine_low_latency

        combine_low_latency(*self.parts(rank), self.settings, self.rows[rank], self.out[rank])

    def on_streams(self, *steps, delays=None):
        """Enqueue the steps of every rank on its stream, after the current stream and before it goes on."""
        for rank, stream in enumerate(self.streams):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                if delays is not None:
                    torch.cuda._sleep(int(delays[rank]))
                for step in steps:
                    step(rank)
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)

    def warm(self, *, low_latency=False):
        for state in self.states:
            if low_latency:
                warm_up_low_latency(state, self.settings, torch.bfloat16)
            else:
                warm_up(state, self.settings, torch.bfloat16)

    def expected_layout(self, rank):
        """Rows by the layout of the other backends."""
        slots = torch.stack(self.slots)
        for source, count in enumerate(self.tokens):
            slots[source, count:] = -1
        first, end = self.states[rank].first_slot[rank : rank + 2]
        rows, _ = expert_rows(slots.flatten(0, 1), torch.stack(self.weights).flatten(0, 1), range(first, end))
        return rows

    def wrong_rows(self, rank, x):
        rows = self.expected_layout(rank)
        wrong = int((self.layouts[rank].row_CK != rows.row_DJ).sum())
        wrong += int((self.layouts[rank].offs_S != rows.rows_per_slot_S.cumsum(0)).sum())
        expected = x.flatten(0, 1)[rows.copy_of_row_M]
        return wrong, int((self.rows[rank][: len(expected)] != expected).sum())

    def expected_out(self, rank, x):
        """[T, H] partial sums by rank, rounded to bf16, added in the order of ranks; sums of integers are exact."""
        slots = self.slots[rank]
        factor = torch.where(slots >= 0, self.scale[slots.clamp(min=0)] * self.weights[rank], 0)
        owner = torch.searchsorted(torch.tensor(self.states[0].first_slot[1:], device=DEVICE), slots, right=True)
        total = torch.zeros((self.T, self.H), device=DEVICE)
        for peer in range(self.P):
            part = torch.where((owner == peer) & (slots >= 0), factor, 0).sum(dim=1, keepdim=True)
            total += (x[rank].float() * part).bfloat16().float()
        return total.bfloat16()[: self.tokens[rank]]

    def errors(self):
        return [state.errors().tolist() for state in self.states]


def section(name, body):
    start = time.perf_counter()
    try:
        body()
    except Exception:
        print(f"FAILED {name}")
        traceback.print_exc(limit=6, file=sys.stdout)
    torch.cuda.synchronize()
    print(f"  ({name}: {time.perf_counter() - start:.1f} s)", flush=True)


def correctness(num_ranks, tokens, fp8, low_latency, poison=True):
    ranks = Ranks(num_ranks, max(tokens), fp8=fp8)
    ranks.warm(low_latency=low_latency)
    bad = [0, 0, 0]
    for step in range(4):
        ranks.fill(tokens if step % 2 == 0 else tokens[::-1])
        if poison:
            ranks.poison()
        if low_latency:
            ranks.on_streams(ranks.low_latency_dispatch)
        else:
            ranks.on_streams(ranks.plan, ranks.dispatch)
        x = torch.stack(ranks.x)
        x = rounded_to_float8(x) if fp8 else x
        for rank in range(num_ranks):
            layout, rows = ranks.wrong_rows(rank, x)
            bad[0] += layout
            bad[1] += rows
        ranks.on_streams(ranks.experts)
        ranks.on_streams(ranks.low_latency_combine if low_latency else ranks.combine)
        if not fp8:
            for rank in range(num_ranks):
                bad[2] += int((ranks.out[rank][: ranks.tokens[rank]] != ranks.expected_out(rank, x)).sum())
    mode = "low latency" if low_latency else "normal"
    print(f"P={num_ranks} {mode} {'fp8' if fp8 else 'bf16'} tokens {tokens}: wrong layout/rows/results {bad}", end=" ")
    print(f"errors {ranks.errors()}", flush=True)


def fixed_order():
    ranks = Ranks(2, 300, fixed=True)
    ranks.warm()
    ranks.fill([300, 211], real=True)
    ranks.on_streams(ranks.plan, ranks.dispatch, ranks.experts, ranks.combine)
    bad = 0
    for rank, count in enumerate(ranks.tokens):
        slots, x = ranks.slots[rank][:count], ranks.x[rank][:count]
        y = (x[:, None] * ranks.scale[slots.clamp(min=0)][..., None].bfloat16()).flatten(0, 1)
        row = torch.where(slots >= 0, torch.arange(slots.numel(), device=DEVICE).view_as(slots), -1)
        bad += int((weighted_sum(y, row, ranks.weights[rank][:count]) != ranks.out[rank][:count]).sum())
    print(f"fixed order, real numbers: {bad} values differ from the reference", flush=True)


def captured(ranks, *steps):
    """One graph for each rank, captured while the others do not run: launched on the rank's stream."""
    graphs = []
    for rank, stream in enumerate(ranks.streams):
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for step in steps:
                step(rank)
        graphs.append(graph)
    return graphs


def stress(low_latency, replays, capacity, num_ranks=2):
    """Replays with new data, routing, counts and, in the normal mode, random delays up to 0.2 ms on every rank.

    In the low-latency mode a rank that waits holds every multiprocessor, and a delay of another rank on the same GPU
    may not start; R1-R5 delay the ranks of a pair.
    """
    ranks = Ranks(num_ranks, capacity)
    ranks.warm(low_latency=low_latency)
    ranks.fill([capacity] * num_ranks)
    ranks.experts(0)
    if low_latency:
        steps = (ranks.low_latency_dispatch, ranks.experts, ranks.low_latency_combine)
    else:
        steps = (ranks.plan, ranks.dispatch, ranks.experts, ranks.combine)
    graphs = captured(ranks, *steps)
    bad = torch.zeros((), dtype=torch.int64, device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    for replay in range(replays):
        tokens = torch.randint(0, capacity + 1, (num_ranks,), generator=generator).tolist()
        ranks.fill(tokens)
        if replay % 4 == 0:
            ranks.poison()
        delays = None if low_latency else torch.randint(0, 350_000, (num_ranks,), generator=generator).tolist()
        ranks.on_streams(lambda rank: graphs[rank].replay(), delays=delays)
        for rank in range(num_ranks):
            bad += (ranks.out[rank][: tokens[rank]] != ranks.expected_out(rank, ranks.x)).sum()
    mode = "low latency" if low_latency else "normal"
    print(f"stress P={num_ranks} {mode}, {replays} replays, capacity {capacity}: {int(bad)} wrong values", end=" ")
    print(f"errors {ranks.errors()}", flush=True)


def safety():
    """Rank 1 runs one dispatch fewer: both ranks raise, and the result is NaN."""
    ranks = Ranks(2, 256, timeout=0.3)
    ranks.warm()
    ranks.fill([256, 200])
    ranks.on_streams(ranks.plan)
    start = time.perf_counter()
    ranks.on_streams(lambda rank: ranks.dispatch(rank) if rank == 0 else None)
    ranks.on_streams(ranks.experts, ranks.combine)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    raised = []
    for state in ranks.states:
        try:
            state.raise_on_error()
        except EplbError as error:
            raised.append(str(error))
    nan = [bool(out[: ranks.tokens[rank]].isnan().all()) for rank, out in enumerate(ranks.out)]
    print(f"a step fewer: {seconds:.2f} s, NaN {nan}, raised on {len(raised)} ranks: {raised[:1]}", flush=True)


def timing(name, ranks, *steps, calls=10, before=()):
    """Microseconds of a call in a graph of 10 calls of every rank, both at once, loopback."""
    ranks.on_streams(*before)
    graphs = captured(ranks, *(steps * calls))
    times = []
    for _ in range(7):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        ranks.on_streams(lambda rank: graphs[rank].replay())
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    print(f"  loopback {name}: {statistics.median(times):.1f} us a call, errors {ranks.errors()}", flush=True)


def timings():
    for fp8 in (False, True):
        kind = "fp8" if fp8 else "bf16"
        ranks = Ranks(2, 4096, fp8=fp8)
        ranks.warm()
        ranks.fill([4096, 4096], masked=0)
        timing(f"4096 {kind} choices + layout", ranks, ranks.plan)
        timing(f"4096 {kind} dispatch + expand", ranks, ranks.dispatch, before=(ranks.plan,))
        timing(f"4096 {kind} reduce + combine", ranks, ranks.combine)
        timing(f"4096 {kind} all", ranks, ranks.plan, ranks.dispatch, ranks.combine)
        del ranks
        ranks = Ranks(2, 128, fp8=fp8)
        ranks.warm(low_latency=True)
        ranks.fill([128, 128], masked=0)
        timing(f"128 {kind} low-latency dispatch", ranks, ranks.low_latency_dispatch)
        timing(f"128 {kind} low-latency combine", ranks, ranks.low_latency_combine)
        timing(f"128 {kind} low-latency pair", ranks, ranks.low_latency_dispatch, ranks.low_latency_combine)


def main():
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(0), torch.__version__, flush=True)
    for num_ranks, tokens in ((2, (300, 517)), (4, (64, 0, 200, 131))):
        for fp8 in (False, True):
            section("correct", lambda n=num_ranks, t=tokens, f=fp8: correctness(n, t, f, low_latency=False))
    for num_ranks, tokens in ((2, (128, 77)), (4, (64, 0, 31, 50))):
        for fp8 in (False, True):
            section("correct", lambda n=num_ranks, t=tokens, f=fp8: correctness(n, t, f, low_latency=True))
    section("fixed order", fixed_order)
    section("safety", safety)
    section("stress", lambda: stress(True, 100, 128))
    section("stress", lambda: stress(False, 100, 512))
    section("stress", lambda: stress(False, 20, 4096))
    if "--times" in sys.argv:
        section("timings", timings)


if __name__ == "__main__":
    main()
