"""Cuts the steps of a trace into windows: the one rule for plans, evaluations, reports and statistics.

A trace that is not told otherwise is cut into windows that are as short as these limits allow:

- at most 40: enough to tell one time from another and to hold some out, few enough to plan for all in seconds;
- at least 8 choices an expert on average: with n of them, chance alone moves the count of an expert by 1 / sqrt(n), a
  third at 8. In shorter windows most of what looks uneven is chance, and no placement can help.

A trace that is too short for two such windows is one window. So is one whose steps are the positions of tokens in their
request, 0, 1, 2 and so on: an array without steps, or the routing of single requests. Positions are no time.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.routing_trace import ALL_STEPS, RoutingTrace

MOST_WINDOWS: Final = 40
LEAST_CHOICES: Final = 8
"""Choices of an expert in a window, on average."""


def load_by_window(source: ExpertLoad | RoutingTrace, window: int | None) -> ExpertLoad:
    """Count a trace in windows, or sum windows of a load.

    Parameters
    ----------
    source
        The trace or load.
    window
        For a trace, steps of a window; for a load, windows to sum into one; `ALL_STEPS`: everything is one window.
        None: a trace is cut by the rule of this module, and a load keeps its windows.

    Raises
    ------
    InputError
        If the trace has no tokens, or `window` < 1.
    """
    if isinstance(source, ExpertLoad):
        return source if window is None else source.merged(window)
    if window is not None:
        return source.load(window)
    if has_positions_for_steps(source):
        return source.load()
    num_choices = source.num_tokens * (source.shape.top_k or 1)
    return source.load(window_length(source.steps, num_choices, source.shape.num_experts))


def has_positions_for_steps(trace: RoutingTrace) -> bool:
    """Whether the tokens of every request have the steps 0, 1, 2, ..., in this order: reads on only while they do."""
    num_seen: dict[int, int] = {}
    for step, request in zip(trace.column("step"), trace.column("request"), strict=True):
        ids, inverse, counts = np.unique(request, return_inverse=True, return_counts=True)
        before = np.array([num_seen.get(i, 0) for i in ids.tolist()], dtype=np.int64)
        place = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts - before, counts)
        if not np.array_equal(step[np.argsort(inverse, kind="stable")], place):
            return False
        num_seen.update(zip(ids.tolist(), (before + counts).tolist(), strict=True))
    return True


def window_length(steps: NDArray[np.int64], num_choices: int, num_experts: int) -> int:
    """Steps of a window by the rule of this module.

    Parameters
    ----------
    steps
        Ascending, each once: the steps that hold tokens.
    num_choices
        Choices of all steps in one layer.
    num_experts
        E

    Returns
    -------
    int
        `ALL_STEPS` where only one window would hold tokens.
    """
    most = min(MOST_WINDOWS, num_choices // (LEAST_CHOICES * num_experts))
    if most < 2 or len(steps) < 2:
        return ALL_STEPS
    return _length_for(steps - steps[0], most)


def load_over_time(trace: RoutingTrace, num_windows: int) -> ExpertLoad:
    """Count a trace in at most `num_windows` windows of equally many steps, from its first step on.

    Windows without a token are left out and do not count, so that a gap in the steps does not make windows longer. The
    last window may reach beyond the last step.

    Raises
    ------
    InputError
        If the trace has no tokens or `num_windows` < 1.
    """
    if num_windows < 1:
        raise InputError(f"num_windows = {num_windows}: expected >= 1")
    return trace.load(_length_for(trace.steps - trace.steps[0], num_windows))


def _length_for(since_first: NDArray[np.int64], num_windows: int) -> int:
    """Steps of a window so that at most `num_windows` windows hold tokens."""
    window = -(-since_first.size // num_windows)
    while np.unique(since_first // window).size > num_windows:
        window += max(1, window // 8)
    return window
