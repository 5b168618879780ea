"""Generates synthetic loads by window and token-level traces.

Deterministic: equal arguments and seeds give equal bytes. Workloads of one seed have the measured similarity (see
`rates`). The presets are in the table PRESETS.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.limits import LARGEST_EXACT, MOST_NUMBERS
from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import RoutingTrace
from eplb_traces.synthetic.presets import PRESETS, Preset, Workload
from eplb_traces.synthetic.rates import expert_rates, stream
from eplb_traces.synthetic.tokens import step_batches


def synthesize_load(
    preset: str = "v3-prefill",
    *,
    shape: ModelShape | None = None,
    num_windows: int = 1,
    tokens_per_window: int = 1 << 20,
    seed: int = 0,
) -> ExpertLoad:
    """Draw tokens per expert, window by window.

    The rates of a window vary around those of its workload because of its sequences (Dirichlet: the mean of n sequences
    of concentration c varies like one draw of concentration (c + 1) n - 1). Its counts are a multinomial draw.

    Parameters
    ----------
    preset
        A key of PRESETS.
    shape
        The model; None: the preset's.
    num_windows
        Number of windows; several workloads of a preset get equal runs of windows, and are named in the labels.
    tokens_per_window
        Tokens per window; each layer gets top_k times as many choices.

    Raises
    ------
    InputError
        If the preset is unknown, a number is below 1, or the result would not fit into memory.
    """
    chosen = _named_preset(preset)
    model = shape or chosen.shape
    _check_positive({"num_windows": num_windows, "tokens_per_window": tokens_per_window})
    _check_size("num_windows x layers x experts", num_windows * model.num_layers * model.num_experts, MOST_NUMBERS)
    _check_size("tokens_per_window x top_k", tokens_per_window * _top_k(model), LARGEST_EXACT)
    rates_of = {workload.name: expert_rates(workload, model, seed) for workload in chosen.workloads}
    generator = stream(seed, "windows", preset)
    schedule = _schedule(chosen, num_windows)
    counts = [
        _window_counts(workload, rates_of[workload.name], tokens_per_window, top_k=_top_k(model), generator=generator)
        for workload in schedule
    ]
    return ExpertLoad(np.stack(counts), labels=[workload.name for workload in schedule], shape=model)


def synthesize_trace(
    preset: str = "v3-prefill",
    *,
    shape: ModelShape | None = None,
    num_steps: int = 8,
    tokens_per_step: int = 1024,
    seed: int = 0,
) -> RoutingTrace:
    """Draw the choices of single tokens, step by step, with group limit, lag-1 reuse and co-activation.

    Parameters
    ----------
    preset
        A key of PRESETS.
    shape
        The model; None: the preset's.
    num_steps
        Engine steps; several workloads of a preset get equal runs of steps.
    tokens_per_step
        Tokens per step: new sequences at each step in prefill, one token of each running request in decode.

    Raises
    ------
    InputError
        If the preset is unknown, a number is below 1, or the result would not fit into memory.
    """
    chosen = _named_preset(preset)
    model = shape or chosen.shape
    _check_positive({"num_steps": num_steps, "tokens_per_step": tokens_per_step})
    num_choices = num_steps * tokens_per_step * model.num_layers * _top_k(model)
    _check_size("num_steps x tokens_per_step x layers x top_k", num_choices, MOST_NUMBERS)
    _check_size("tokens_per_step x experts", tokens_per_step * model.num_experts, MOST_NUMBERS)
    batches = list(step_batches(_schedule(chosen, num_steps), model, tokens_per_step, seed))
    return RoutingTrace(model, batches, num_steps * tokens_per_step)


def _named_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _check_positive(numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} = {value}: expected >= 1")


def _check_size(what: str, size: int, most: int) -> None:
    """Refuse what would need more memory than machines have, or count tokens that float64 does not hold."""
    if size > most:
        raise InputError(f"{what} = {size}: expected at most {most}")


def _top_k(shape: ModelShape) -> int:
    if shape.top_k is None:
        raise InputError("shape.top_k = None: expected the number of experts a token selects")
    return shape.top_k


def _schedule(preset: Preset, length: int) -> list[Workload]:
    """Return the workload of each window or step: equal runs, one after another."""
    num_workloads = len(preset.workloads)
    return [preset.workloads[i * num_workloads // length] for i in range(length)]


def _window_counts(
    workload: Workload, rates: NDArray[np.float64], num_tokens: int, *, top_k: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw one window: [L, E] counts, ``num_tokens * top_k`` a layer."""
    num_sequences = max(1.0, num_tokens / workload.tokens_per_sequence)
    concentration = (workload.concentration + 1) * num_sequences - 1
    gammas = generator.standard_gamma(rates * concentration)
    return generator.multinomial(num_tokens * top_k, gammas / gammas.sum(axis=1, keepdims=True))
