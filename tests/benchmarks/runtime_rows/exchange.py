"""R1 to R5: dispatch and combine of the symmetric exchange on two GPUs, at DeepSeek-V3's sizes.

chain: a CUDA graph of ten calls, replayed nine times; every call waits for the data of the other rank. single: one
eager call, a barrier and a flush of the L2 cache before it; median of 30 after 10. Both are the maximum over ranks.
Before anything is timed, layout, rows and results of random batches are compared with torch, then replays of captured
graphs with new routing, counts and random delays. GB/s are those of the wire: bytes that leave a GPU.
"""

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist

from eplb.errors import EplbError
from eplb.runtime import Launch, Member, run_processes
from eplb.runtime.exchange.expert_rows import expert_rows
from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.memory import memory_over_nvlink
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.exchange.symmetric.warm_up import warm_up, warm_up_low_latency
from eplb.runtime.kernels import low_latency, normal_mode
from eplb.runtime.kernels.pull import pull_sums

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
CALLS, REPLAYS, WARM_UPS, REPEATS = 10, 9, 10, 30
LONGEST_DELAY = 350_000
"""Clock cycles, about 0.2 ms."""
BARS = {"R1": 175.0, "R2": 104.0, "R3": 188.0, "R1b": 205.0, "R3b": 205.0, "R4": 19.0, "R5": 15.0}

PUSH_VARIANTS: tuple[dict[str, int], ...] = (
    {"pushers": 64, "dispatch_group": 16},
    {"pushers": 64, "dispatch_group": 16, "dispatch_warps": 16},
    {"pushers": 64, "dispatch_group": 32, "dispatch_warps": 16},
)
FAST_COMBINE_VARIANTS: tuple[dict[str, int], ...] = (
    {"fast_combine_warps": 8, "fast_skip_absent": True},
    {"fast_combine_warps": 4, "fast_skip_absent": False},
    {"fast_combine_warps": 8, "fast_skip_absent": False},
)


@dataclass(frozen=True)
class Result:
    """One figure."""

    row: str
    what: str
    chain_us: float
    single_us: float
    wire_mb: float
    bar_us: float

    @property
    def wire_gb_s(self) -> float:
        return self.wire_mb * 1e3 / self.chain_us


class Rank:
    """One rank of the exchange: buffers of fixed addresses, and the batches of all ranks to compare with."""

    def __init__(self, member: Member, capacity: int, settings: KernelSettings, timeout_s: float = 10.0) -> None:
        self.P, self.me, self.T = dist.get_world_size(), member.process, capacity
        shape = RegionShape(self.P, capacity, TOP_K, HIDDEN)
        self.first_slot = tuple(rank * EXPERTS // self.P for rank in range(self.P + 1))
        memory = memory_over_nvlink(member.process_group, shape.num_bytes, member.device)
        self.state = RankState.create(memory, shape, self.first_slot, timeout_s=timeout_s)
        self.settings, self.device = settings, member.device
        self.generator = torch.Generator(member.device).manual_seed(0)  # the same on every rank
        self.scale = torch.randint(-3, 4, (EXPERTS,), generator=self.generator, device=self.device).float()
        self.x = torch.zeros((capacity, HIDDEN), dtype=torch.bfloat16, device=self.device)
        self.slots = torch.full((capacity, TOP_K), -1, dtype=torch.int64, device=self.device)
        self.weights = torch.zeros((capacity, TOP_K), device=self.device)
        self.out = torch.zeros_like(self.x)
        self.rows = torch.zeros((self.state.max_rows, HIDDEN), dtype=torch.bfloat16, device=self.device)
        self.layout = ExchangeLayout.allocate(self.state, self.slots)
        self.epoch = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.pullers = 32
        self.numbers = torch.arange(self.state.max_rows, dtype=torch.int32, device=self.device)

    def fill(self, tokens: list[int], *, masked: float = 0.05, bias: float = 0.0) -> None:
        """New batches of all ranks, the same on every rank; this rank's are written to its buffers."""
        kind = {"generator": self.generator, "device": self.device}
        hot_E = torch.randn(EXPERTS, **kind) * bias
        self.tokens, self.all = tokens, []
        for _ in tokens:
            scores = torch.rand((self.T, EXPERTS), **kind).log() / hot_E.exp()
            slots = scores.topk(TOP_K).indices
            slots[torch.rand(slots.shape, **kind) < masked] = -1
            weights = (torch.rand(slots.shape, **kind) * 8).round() / 8
            self.all.append((torch.randint(-4, 5, (self.T, HIDDEN), **kind).bfloat16(), slots, weights))
        for target, source in zip((self.x, self.slots, self.weights), self.all[self.me], strict=True):
            target.copy_(source)
        self.layout.num_tokens.fill_(tokens[self.me])

    def poison(self) -> None:
        """NaN in every buffer; between two barriers, because other ranks write into this region."""
        torch.cuda.synchronize()
        dist.barrier()
        self.state.poison()
        self.rows.fill_(float("nan"))
        self.out.fill_(float("nan"))
        torch.cuda.synchronize()
        dist.barrier()

    def plan(self) -> None:
        normal_mode.publish_choices(self.state, self.layout, self.weights, self.epoch)
        normal_mode.make_layout(self.state, self.layout)

    def push(self) -> None:
        phase = Phase.SEND_AND_WAIT
        normal_mode.dispatch_rows(self.state, self.layout, self.settings, self.x, self.rows, phase)

    def dispatch(self) -> None:
        normal_mode.dispatch_rows(self.state, self.layout, self.settings, self.x, self.rows)

    def combine(self) -> None:
        normal_mode.combine_rows(self.state, self.layout, self.settings, self.rows, self.out)

    def pull(self) -> None:
        pull_sums(self.state, self.layout, self.out, self.pullers)

    def wrong_pulls(self) -> int:
        """Differences of the pulled sums from those of all ranks, drawn alike everywhere."""
        parity = int(self.state.epochs[Family.COMBINE]) & 1
        kind = {"generator": self.generator, "device": self.device}
        sums = torch.randint(-4, 5, (self.P, self.P, self.T, HIDDEN), **kind).bfloat16()  # expert rank, token's rank
        staged = self.state.part("stage").view(torch.bfloat16).view(2, self.P, self.T, HIDDEN)
        staged[parity].copy_(sums[self.me])
        self.pull()
        hit = (self.layout.hit_T >> torch.arange(self.P, device=self.device)[:, None] & 1)[..., None]
        expected = (sums[:, self.me] * hit).float().sum(dim=0).bfloat16()
        count = self.tokens[self.me]
        return int((self.out[:count] != expected[:count]).sum())

    def fast_dispatch(self) -> None:
        buffers = self.weights, self.x, self.rows
        low_latency.dispatch_low_latency(self.state, self.layout, *buffers, settings=self.settings)

    def fast_combine(self) -> None:
        low_latency.combine_low_latency(self.state, self.layout, self.settings, self.rows, self.out)

    def experts(self) -> None:
        """Multiply every row by the number of its slot, without a wait of the host."""
        slot = torch.searchsorted(self.layout.offs_S, self.numbers, right=True)
        own = self.scale[self.first_slot[self.me] : self.first_slot[self.me + 1]]
        self.rows.mul_(torch.cat([own, own[:1]])[slot][:, None].bfloat16())

    def warm(self, *, fast: bool) -> None:
        """Compile and load the kernels on every rank."""
        if fast:
            warm_up_low_latency(self.state, self.settings, torch.bfloat16)
        else:
            warm_up(self.state, self.settings, torch.bfloat16)
            self.fill([0] * self.P)
            self.plan()
            self.push()
        torch.cuda.synchronize()
        dist.barrier()

    def wrong_rows(self) -> tuple[int, int]:
        """Differences of the layout and of the dispatched rows from torch."""
        slots = torch.stack([slots for _, slots, _ in self.all])
        for source, count in enumerate(self.tokens):
            slots[source, count:] = -1
        weights = torch.stack([weights for _, _, weights in self.all])
        own = range(self.first_slot[self.me], self.first_slot[self.me + 1])
        rows, _ = expert_rows(slots.flatten(0, 1), weights.flatten(0, 1), own)
        wrong = int((self.layout.row_CK != rows.row_DJ).sum())
        wrong += int((self.layout.offs_S != rows.rows_per_slot_S.cumsum(0)).sum())
        x = torch.stack([x for x, _, _ in self.all])
        x = rounded_to_float8(x) if self.settings.float8_wire else x
        expected = x.flatten(0, 1)[rows.copy_of_row_M]
        return wrong, int((self.rows[: len(expected)] != expected).sum())

    def wrong_results(self) -> torch.Tensor:
        """[] differences from bf16 sums by rank; sums of integers are exact."""
        x, slots, weights = self.all[self.me]
        factor = torch.where(slots >= 0, self.scale[slots.clamp(min=0)] * weights, 0)
        owner = torch.searchsorted(torch.tensor(self.first_slot[1:], device=self.device), slots, right=True)
        total = torch.zeros((self.T, HIDDEN), device=self.device)
        for peer in range(self.P):
            part = torch.where((owner == peer) & (slots >= 0), factor, 0).sum(dim=1, keepdim=True)
            total += (x.float() * part).bfloat16().float()
        count = self.tokens[self.me]
        return (total.bfloat16()[:count] != self.out[:count]).sum()


def rounded_to_float8(x: torch.Tensor) -> torch.Tensor:
    """Rows to e4m3 and back, with one scale for each 128 channels."""
    groups = x.float().unflatten(-1, (-1, 128))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    value = (groups * (448.0 / largest)).to(torch.float8_e4m3fn).float()
    return (value * (largest * (1.0 / 448.0))).flatten(-2).to(x.dtype)


def captured(*steps: Callable[[], None], calls: int = 1) -> torch.cuda.CUDAGraph:
    """The steps, `calls` times, in one graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the communicator uses other threads
        for _ in range(calls):
            for step in steps:
                step()
    return graph


def check(rank: Rank, batches: list[list[int]], *, fast: bool, bias: float = 0.0) -> list[int]:
    """Differences of layout, rows and results over batches, poison in every buffer before each."""
    wrong = [0, 0, 0]
    for tokens in batches:
        rank.fill(tokens, bias=bias)
        rank.poison()
        for step in (rank.fast_dispatch,) if fast else (rank.plan, rank.dispatch):
            step()
        layout, rows = rank.wrong_rows()
        rank.experts()
        (rank.fast_combine if fast else rank.combine)()
        results = 0 if rank.settings.float8_wire else int(rank.wrong_results())
        wrong = [a + b for a, b in zip(wrong, (layout, rows, results), strict=True)]
        rank.state.raise_on_error()
    return wrong


def stress(rank: Rank, replays: int, *, fast: bool) -> int:
    """Differences over replays of one graph: new data, routing and counts, random delays on every rank."""
    steps = (rank.fast_dispatch, rank.experts, rank.fast_combine)
    if not fast:
        steps = (rank.plan, rank.dispatch, rank.experts, rank.combine)
    rank.experts()
    graph = captured(*steps)
    dist.barrier()
    wrong = torch.zeros((), dtype=torch.int64, device=rank.device)
    choice = torch.Generator().manual_seed(1)
    for _ in range(replays):
        rank.fill(torch.randint(0, rank.T + 1, (rank.P,), generator=choice).tolist())
        delays = torch.randint(0, LONGEST_DELAY, (rank.P,), generator=choice).tolist()
        torch.cuda._sleep(delays[rank.me])
        graph.replay()
        wrong += rank.wrong_results()
    rank.state.raise_on_error()
    return int(wrong)


def chain_us(rank: Rank, *steps: Callable[[], None]) -> float:
    for step in steps:
        step()  # compiled and loaded on every rank before the first capture
    torch.cuda.synchronize()
    dist.barrier()
    graph = captured(*steps, calls=CALLS)
    times = [timed(graph.replay) / CALLS for _ in range(REPLAYS)]
    rank.state.raise_on_error()
    return statistics.median(times)


def single_us(rank: Rank, step: Callable[[], None]) -> float:
    flush = torch.empty(256 * 2**20 // 4, dtype=torch.int32, device=rank.device)
    times = [timed(step, flush) for _ in range(WARM_UPS + REPEATS)]
    rank.state.raise_on_error()
    return statistics.median(times[WARM_UPS:])


def timed(call: Callable[[], None], flush: torch.Tensor | None = None) -> float:
    """Microseconds of a call after a barrier."""
    if flush is not None:
        flush.zero_()
    dist.barrier()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _step_fewer(member: Member) -> str:
    """Rank 1 executes one dispatch fewer than the others: what this rank raises."""
    rank = Rank(member, 256, KernelSettings(), timeout_s=0.5)
    rank.warm(fast=False)
    rank.fill([256] * rank.P)
    rank.plan()
    if rank.me != 1:
        rank.dispatch()
    torch.cuda.synchronize()
    dist.barrier()
    try:
        rank.state.raise_on_error()
    except EplbError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def shown(words: dict[str, int]) -> str:
    return " ".join(f"{''.join(part[0] for part in name.split('_'))}{int(value)}" for name, value in words.items())


def _measured(member: Member, wanted: tuple[str, ...]) -> tuple[list[str], list[Result]]:  # noqa: C901
    """Checks, then times, of this rank."""
    checks, results = [], []

    def note(text: str) -> None:
        checks.append(text)
        if member.process == 0:
            print(text, flush=True)

    def add(row: str, what: str, rank: Rank, *steps: Callable[[], None], wire: float) -> None:
        if row not in wanted:
            return
        chain = chain_us(rank, *steps)
        single = single_us(rank, steps[0]) if len(steps) == 1 else float("nan")
        results.append(Result(row, what, chain, single, wire / 1e6, BARS.get(row, float("nan"))))

    for fp8 in (False, True):
        kind = "fp8" if fp8 else "bf16"
        settings = KernelSettings(float8_wire=fp8)
        rank = Rank(member, 4096, settings)
        rank.warm(fast=False)
        note(f"{kind} normal, wrong layout/rows/results: {check(rank, [[4096, 3001], [0, 4096]], fast=False)}")
        if not fp8:
            skewed = [check(rank, [[4096, 4096]], fast=False, bias=bias) for bias in (1.0, 3.0)]
            note(f"normal, lognormal routing 1 and 3: {skewed}")
            note(f"normal, 60 replays of 4096 with delays: {stress(rank, 60, fast=False)} wrong")
        rank.fill([4096] * rank.P, masked=0.0)
        rank.plan()
        torch.cuda.synchronize()
        copies = int(((rank.layout.hit_T & ~(1 << rank.me)) != 0).sum())
        wire = copies * (HIDDEN + HIDDEN // 32 if fp8 else 2 * HIDDEN)
        for words in PUSH_VARIANTS:
            rank.settings = replace(settings, **words)
            add("R2" if fp8 else "R1", f"dispatch {kind} {shown(words)}", rank, rank.push, wire=wire)
        rank.settings = settings
        add("R1b", f"dispatch + expand {kind}", rank, rank.dispatch, wire=wire)
        if not fp8:
            add("R3b", "weighted reduce + combine bf16", rank, rank.combine, wire=copies * 2 * HIDDEN)
            rank.pull()
            dist.barrier()
            note(f"pulled sums: {rank.wrong_pulls()} wrong")
            for rank.pullers in (16, 32, 64):
                add("R3", f"pull of reduced sums, {rank.pullers} programs", rank, rank.pull, wire=copies * 2 * HIDDEN)
            add("layout", "choices + layout", rank, rank.plan, wire=0)
        add("front", f"layout, dispatch, combine {kind}", rank, rank.plan, rank.dispatch, rank.combine, wire=2 * wire)
        del rank
        rank = Rank(member, 128, settings)
        rank.warm(fast=True)
        note(f"{kind} low latency: {check(rank, [[128, 77], [0, 128], [128, 128]], fast=True)}")
        if not fp8:
            note(f"low latency, 400 replays with delays: {stress(rank, 400, fast=True)} wrong")
        rank.fill([128] * rank.P, masked=0.0)
        wire = 128 * (HIDDEN + HIDDEN // 32 if fp8 else 2 * HIDDEN)
        add("R4", f"low-latency dispatch {kind}", rank, rank.fast_dispatch, wire=wire)
        for words in FAST_COMBINE_VARIANTS if not fp8 else ({},):
            rank.settings = replace(settings, **words)
            add("R5", f"low-latency combine {shown(words)}", rank, rank.fast_combine, wire=128 * 2 * HIDDEN)
        rank.settings = settings
        add("pair", f"both, {kind}", rank, rank.fast_dispatch, rank.fast_combine, wire=wire + 128 * 2 * HIDDEN)
        del rank
    note(f"a rank executes a step fewer: {_step_fewer(member)}")
    return checks, results


ROWS = ("R1", "R2", "R3", "R1b", "R3b", "R4", "R5", "layout", "front", "pair")


def measure(wanted: tuple[str, ...] = ROWS) -> list[Result]:
    """All rows on two GPUs, the slower rank's; nothing on fewer."""
    if torch.cuda.device_count() < 2:
        print(f"R1 to R5 need 2 GPUs, found {torch.cuda.device_count()}: nothing was measured", flush=True)
        return []
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"  # multicast is not used
    answers = run_processes(Launch(2, "nccl"), _measured, wanted)
    for process, (checks, _) in enumerate(answers[1:], 1):
        print(f"rank {process}: " + "; ".join(checks))
    slowest = []
    for of_ranks in zip(*(results for _, results in answers), strict=True):
        chain, single = max(one.chain_us for one in of_ranks), max(one.single_us for one in of_ranks)
        slowest.append(replace(of_ranks[0], chain_us=chain, single_us=single))
    print(report(slowest), flush=True)
    return slowest


def report(results: list[Result]) -> str:
    """The results as a table."""
    lines = [f"{'row':7} {'what':50} {'chain us':>9} {'single us':>9} {'wire MB':>8} {'GB/s':>6} {'bar us':>7}"]
    for one in results:
        lines.append(
            f"{one.row:7} {one.what:50} {one.chain_us:9.1f} {one.single_us:9.1f} {one.wire_mb:8.2f} "
            f"{one.wire_gb_s:6.0f} {one.bar_us:7.0f}"
        )
    return "\n".join(lines)


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) | {"wire_gb_s": one.wire_gb_s} for one in results]
