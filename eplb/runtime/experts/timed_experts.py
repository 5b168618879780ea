"""Applies a rank's experts with the grouped FFN that a timed trial found fastest for the number of rows.

S slots   R rows   H hidden
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.calibration.timers import Timer, make_timer
from eplb.runtime.experts.candidates import candidates, why_no_candidates
from eplb.runtime.experts.grouped_ffn import GroupedFfn
from eplb.runtime.weights.expert_weights import ExpertWeights

_REPEATS = 7


@final
@dataclass(frozen=True)
class Trial:
    """The times of all candidates on one number of rows."""

    num_rows: int
    """Capacity R, of which `expected_rows` were in use."""
    expected_rows: int
    seconds: Mapping[str, float]
    chosen: GroupedFfn


@final
class TimedExperts:
    """`SlotExperts` that times the candidates once for each order of magnitude of rows and remembers the fastest.

    Without candidates (CPU, another GPU, other weights: `reason` names it) it calls `ExpertWeights.forward`.

    Parameters
    ----------
    weights
        The experts of this rank.
    ffns
        The candidates, by default all for these weights.
    timer
        Times the calls, by default that of the weights' device.
    """

    trials: dict[int, Trial]
    """The trials by binary order of magnitude of R / S."""

    def __init__(
        self, weights: ExpertWeights, ffns: tuple[GroupedFfn, ...] | None = None, timer: Timer | None = None
    ) -> None:
        self.weights = weights
        self.reason = why_no_candidates(weights) if ffns is None else ""
        self._ffns = candidates(weights) if ffns is None else ffns
        self._timer = timer
        self.trials = {}

    def prepare(self, num_rows: int, *, expected_rows: int) -> None:
        """Time the candidates for forward calls of about `num_rows` rows of which `expected_rows` are in use.

        Raises
        ------
        InputError
            If the expected rows are more than `num_rows` or fewer than one.
        """
        if not 1 <= expected_rows <= num_rows:
            raise InputError(f"expected_rows = {expected_rows}: expected 1 to num_rows = {num_rows}")
        if self._ffns:
            self.trials[self._magnitude(num_rows)] = self._trial(num_rows, expected_rows)

    def prepare_up_to(self, most_rows: int) -> None:
        """Time the candidates for every order of magnitude up to `most_rows`, so that no later call does.

        Call it before the first exchange whose waits are bounded: processes compile and time at different speeds.

        Raises
        ------
        InputError
            For less than one row.
        """
        if most_rows < 1:
            raise InputError(f"most_rows = {most_rows}: expected at least 1")
        for magnitude in range(self._magnitude(most_rows) + 1):
            middle = (3 << magnitude) * self.weights.shape.num_slots // 4  # of the rows with this magnitude
            num_rows = min(max(middle, 1), most_rows)
            if self._magnitude(num_rows) not in self.trials:
                self.prepare(num_rows, expected_rows=num_rows)

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """See `SlotExperts`; unused rows of the result are undefined.

        Raises
        ------
        InputError
            In a capture, if there was no trial for this number of rows.
        """
        num_rows = x_RH.shape[0]
        if not self._ffns or num_rows == 0:
            return self.weights.forward(layer, x_RH, rows_per_slot)
        if self._magnitude(num_rows) not in self.trials:
            if x_RH.is_cuda and torch.cuda.is_current_stream_capturing():
                raise InputError(f"no trial for {num_rows} rows: call prepare() before the capture")
            self.prepare(num_rows, expected_rows=num_rows)
        ends_S = rows_per_slot.cumsum(0).to(torch.int32)
        ffn = self.trials[self._magnitude(num_rows)].chosen
        return ffn(self.weights.layer_parts(layer), x_RH.contiguous(), ends_S)

    def _magnitude(self, num_rows: int) -> int:
        return (num_rows // self.weights.shape.num_slots).bit_length()

    def _trial(self, num_rows: int, expected_rows: int) -> Trial:
        shape, device = self.weights.shape, self.weights.device
        x_RH = torch.randn((num_rows, shape.hidden_size), device=device).to(self.weights.compute_dtype)
        shares = torch.arange(1, shape.num_slots + 1, device=device) * expected_rows // shape.num_slots
        ends_S, parts = shares.to(torch.int32), self.weights.layer_parts(0)
        self._timer = make_timer(device.type) if self._timer is None else self._timer
        calls = [partial(ffn, parts, x_RH, ends_S) for ffn in self._ffns]
        times = self._timer.seconds(calls, repeats=_REPEATS).tolist()
        seconds = {ffn.name: time for ffn, time in zip(self._ffns, times, strict=True)}
        chosen = min(self._ffns, key=lambda ffn: seconds[ffn.name])
        return Trial(num_rows, expected_rows, seconds, chosen)
