"""One rank of the symmetric exchange: its buffers, its kernels, and batches whose results torch checks."""

import torch
import torch.distributed as dist

from eplb.runtime import Member
from eplb.runtime.exchange.expert_rows import expert_rows
from eplb.runtime.exchange.symmetric.failures import Family
from eplb.runtime.exchange.symmetric.memory import memory_over_nvlink
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState
from eplb.runtime.exchange.symmetric.warm_up import warm_up, warm_up_low_latency
from eplb.runtime.kernels import low_latency, normal_mode
from eplb.runtime.kernels.pull import pull_sums
from tests.runtime.exchange.symmetric.virtual_cases import rounded_to_float8

from .device_time import captured

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
LONGEST_DELAY = 350_000
"""Clock cycles, about 0.2 ms."""


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

    @property
    def wire_bytes(self) -> int:
        """Of a row in dispatch: bf16, or e4m3 with a scale for each 128 channels."""
        return HIDDEN + HIDDEN // 32 if self.settings.float8_wire else 2 * HIDDEN

    def fill(self, tokens: list[int], *, masked: float = 0.05, bias: float = 0.0, hot: int = EXPERTS) -> None:
        """New batches of all ranks, the same on every rank; this rank's are written to its buffers.

        Routing is uniform over the first `hot` experts, or skewed by lognormal rates of the deviation `bias`.
        """
        kind = {"generator": self.generator, "device": self.device}
        hot_E = torch.randn(EXPERTS, **kind) * bias
        self.tokens, self.all = tokens, []
        for _ in tokens:
            scores = torch.rand((self.T, EXPERTS), **kind).log() / hot_E.exp()
            slots = scores[:, :hot].topk(TOP_K).indices
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
        buffers = self.weights, self.epoch, self.x, self.rows
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


def check(rank: Rank, batches: list[list[int]], *, fast: bool, bias: float = 0.0, hot: int = EXPERTS) -> list[int]:
    """Differences of layout, rows and results over batches, poison in every buffer before each."""
    wrong = [0, 0, 0]
    for tokens in batches:
        rank.fill(tokens, bias=bias, hot=hot)
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
