"""Times the two modes of the symmetric exchange at start: up to how many tokens the low-latency mode is faster."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch

from eplb.runtime.calibration.timers import Timer, make_timer
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.fixed_exchange import ExchangeMode, FixedExchange
from eplb.runtime.exchange.symmetric.region import BufferSizes
from eplb.runtime.kernels.low_latency import MOST_CHOICES

TRIED_TOKENS = (32, 128, 256, 512)
"""Few, because the kernels are compiled for each."""
_REPEATS = 7


@final
@dataclass(frozen=True)
class ModeTrials:
    """Seconds of a dispatch and a combine in both modes, the slowest process's, by the tokens of a process."""

    normal_s: Mapping[int, float]
    low_latency_s: Mapping[int, float]

    @property
    def threshold(self) -> int:
        """The largest number of tokens up to which the low-latency mode was nowhere slower; 0: it always was."""
        last = 0
        for tokens in sorted(self.normal_s):
            if self.low_latency_s[tokens] > self.normal_s[tokens]:
                break
            last = tokens
        return last

    def mode(self, tokens: int) -> ExchangeMode:
        """The faster mode for buffers of so many tokens; those that were not tried get the normal mode."""
        return ExchangeMode.LOW_LATENCY if tokens <= self.threshold else ExchangeMode.NORMAL

    def __str__(self) -> str:
        """The times, then the threshold."""
        times = [
            f"{tokens} tokens: {self.normal_s[tokens] * 1e6:.1f} and {self.low_latency_s[tokens] * 1e6:.1f} us"
            for tokens in sorted(self.normal_s)
        ]
        return f"normal and low-latency mode, {', '.join(times)}; low latency up to {self.threshold} tokens"


def most_low_latency_tokens(group: RankGroup, top_k: int) -> int:
    """Tokens of a process that the low-latency mode holds."""
    return MOST_CHOICES // (group.num_processes * top_k)


def time_modes(  # noqa: PLR0913  # what an exchange is made of, and how it is timed
    group: RankGroup,
    sizes: BufferSizes,
    dtype: torch.dtype,
    device: torch.device,
    *,
    tried: tuple[int, ...] = TRIED_TOKENS,
    timer: Timer | None = None,
) -> ModeTrials:
    """Time both modes with uniform routing. A collective call of all processes, which all get the same trials.

    Parameters
    ----------
    group
        The processes.
    sizes
        Largest batch; it is tried, as far as the low-latency mode holds it.
    dtype
        Type of the rows.
    device
        Of this process.
    tried
        Smaller batches that are tried too.
    timer
        Times the calls, by default that of the device. Every process must make the same calls, so it adds none.

    Raises
    ------
    InputError
        With the reason, if the processes cannot address each other's memory.
    """
    most = min(sizes.tokens, most_low_latency_tokens(group, sizes.top_k))
    timer = make_timer(device.type) if timer is None else timer
    normal_s, low_latency_s = {}, {}
    for tokens in sorted({smaller for smaller in tried if smaller < most} | {most}):
        own_s = _seconds(group, replace(sizes, tokens=tokens), dtype, device, timer)
        normal_s[tokens], low_latency_s[tokens] = group.all_gather(own_s).amax(dim=0).tolist()
    return ModeTrials(normal_s, low_latency_s)


def _seconds(
    group: RankGroup, sizes: BufferSizes, dtype: torch.dtype, device: torch.device, timer: Timer
) -> torch.Tensor:
    """[2] float64 seconds of the normal and the low-latency mode on this process."""
    generator = torch.Generator().manual_seed(group.process)
    scores = torch.rand((sizes.tokens, group.topology.num_slots), generator=generator)
    calls = []
    for mode in (ExchangeMode.NORMAL, ExchangeMode.LOW_LATENCY):
        exchange = FixedExchange.create(group, sizes, dtype, device, mode=mode)
        exchange.slot_TK.copy_(scores.topk(sizes.top_k).indices)
        exchange.set_tokens(sizes.tokens)
        x_TH = torch.zeros((sizes.tokens, sizes.hidden), dtype=dtype, device=device)
        calls.append(partial(_there_and_back, exchange, x_TH))
    for call in calls:
        call()
    return torch.from_numpy(timer.seconds(calls, repeats=_REPEATS, warm_s=0)).to(device)


def _there_and_back(exchange: FixedExchange, x_TH: torch.Tensor) -> None:
    exchange.combine(exchange.dispatch(x_TH))
