"""Chooses the buffers of a captured layer: peer memory where it exists, otherwise collectives with the same kernels."""

from dataclasses import dataclass
from typing import final

import torch

from eplb.runtime.calibration.timers import Timer
from eplb.runtime.exchange.collective_buffers import CollectiveBuffers
from eplb.runtime.exchange.protocol import FixedBuffers
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.fixed_exchange import ExchangeMode, FixedExchange
from eplb.runtime.exchange.symmetric.mode_trial import ModeTrials, most_low_latency_tokens, time_modes
from eplb.runtime.exchange.symmetric.region import BufferSizes


@final
@dataclass(frozen=True, eq=False)
class BuffersChoice:
    """The buffers, and why these."""

    buffers: FixedBuffers
    reason: str
    trials: ModeTrials | None
    """Of the two modes of the symmetric exchange; None if there was no choice. The next call may take them again."""


def fixed_buffers(  # noqa: PLR0913  # what buffers are made of, and two ways to time their modes
    group: RankGroup,
    sizes: BufferSizes,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trials: ModeTrials | None = None,
    timer: Timer | None = None,
) -> BuffersChoice:
    """Allocate buffers for `CapturedLayers`. A collective call of all processes, which choose the same.

    Parameters
    ----------
    group
        The processes.
    sizes
        Largest batch.
    dtype
        Type of the rows.
    device
        Of this process.
    trials
        Times of the two modes of the symmetric exchange; None: they are measured, for these sizes alone, if the
        low-latency mode holds them.
    timer
        Measures them, by default the timer of the device.

    Raises
    ------
    InputError
        With the reason, if the kernels cannot run on the device.
    """
    if refusal := symmetric_refusal(group, device):
        return BuffersChoice(CollectiveBuffers.create(group, sizes, dtype, device), f"not symmetric: {refusal}", None)
    most = most_low_latency_tokens(group, sizes.top_k)
    if trials is None and sizes.tokens <= most:
        trials = time_modes(group, sizes, dtype, device, tried=(), timer=timer)
    mode = ExchangeMode.NORMAL if trials is None else trials.mode(sizes.tokens)
    reason = f"the low-latency mode holds {most} tokens" if trials is None else str(trials)
    return BuffersChoice(FixedExchange.create(group, sizes, dtype, device, mode=mode), reason, trials)
