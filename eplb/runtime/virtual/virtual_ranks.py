"""Times the expert FFN of every rank of a layer on one device, rank by rank, with random weights.

A plan for any number of ranks runs on one GPU: a rank needs the weights of its slots of one layer, and all ranks share
them, since only shapes and rows matter for time.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime.calibration.grouped_ffn_call import FfnCalls, make_calls
from eplb.runtime.calibration.timers import WARM_S, Timer, make_timer


@final
@dataclass(frozen=True)
class ExpertShape:
    """Sizes of an expert and the type of its weights."""

    hidden: int
    intermediate: int
    dtype: str = "bf16"


@final
class VirtualRanks:
    """The ranks of a topology, executed one after the other.

    Parameters
    ----------
    topology
        Slots of each rank.
    shape
        The experts.
    device
        "cuda" or "cpu".

    Raises
    ------
    InputError
        If the device is missing or does not multiply the type.
    """

    def __init__(self, topology: Topology, shape: ExpertShape, device: str = "cuda") -> None:
        self.topology, self.shape = topology, shape
        self._timer: Timer = make_timer(device)
        self._calls: dict[int, FfnCalls] = {}

    def measure(self, slot_tokens: Ints, *, repeats: int = 3, warm_s: float = WARM_S) -> Floats:
        """Seconds of every rank, the median of so many rounds over all ranks; 0 for a rank without a row.

        Parameters
        ----------
        slot_tokens
            [P] rows of each slot of a layer.
        repeats
            Timed rounds.
        warm_s
            Seconds of work on the same rows before, at least one round; 0: none.

        Returns
        -------
        NDArray
            [R]

        Raises
        ------
        InputError
            If the slots are not those of the topology.
        """
        if slot_tokens.shape != (self.topology.num_slots,):
            raise InputError(f"slot_tokens has shape {slot_tokens.shape}: expected ({self.topology.num_slots},)")
        own = dict(enumerate(np.split(slot_tokens, self.topology.rank_first_slot[1:-1])))
        busy = [rank for rank, tokens in own.items() if tokens.any()]
        calls = [self._of(own[rank].size).call(own[rank].tolist()) for rank in busy]
        seconds = np.zeros(self.topology.num_ranks)
        if calls:
            seconds[busy] = self._timer.seconds(calls, repeats=repeats, warm_s=warm_s)
        return seconds

    def _of(self, num_slots: int) -> FfnCalls:
        if num_slots not in self._calls:
            shape = self.shape
            self._calls[num_slots] = make_calls(
                shape.dtype,
                num_slots=num_slots,
                hidden=shape.hidden,
                intermediate=shape.intermediate,
                device=self._timer.device,
            )
            self._calls[num_slots].call((1,) * num_slots)()  # kernels are loaded before the first measurement
        return self._calls[num_slots]
