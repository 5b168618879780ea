"""Chooses the buffers of a captured layer: peer memory where it exists, otherwise collectives with the same kernels."""

from dataclasses import dataclass
from typing import final

import torch

from eplb.runtime.calibration.timers import Timer
from eplb.runtime.exchange.collective_buffers import CollectiveBuffers
from eplb.runtime.exchange.protocol import FixedBuffers
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.fixed_exchange import FixedExchange
from eplb.runtime.exchange.symmetric.mode_trial import ModeTrials, time_modes
from eplb.runtime.exchange.symmetric.region import BufferSizes


@final
@dataclass(frozen=True, eq=False)
class BuffersChoice:
    """The buffers, and why these."""

    buffers: FixedBuffers
    reason: str
    trials: ModeTrials | None
    """Of the two modes of the symmetric exchange; None without it. Give it to the next call instead of timing again."""


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
        Times of the two modes of the symmetric exchange; None: they are measured.
    timer
        Measures them, by default the timer of the device.

    Raises
    ------
    InputError
        With the reason, if the kernels cannot run on the device.
    """
    if refusal := symmetric_refusal(group, device):
        return BuffersChoice(CollectiveBuffers.create(group, sizes, dtype, device), f"not symmetric: {refusal}", None)
    trials = time_modes(group, sizes, dtype, device, timer) if trials is None else trials
    exchange = FixedExchange.create(group, sizes, dtype, device, mode=trials.mode(sizes.tokens))
    return BuffersChoice(exchange, str(trials), trials)
