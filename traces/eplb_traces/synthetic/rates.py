"""Draws a rate for every expert from the statistics of a workload.

The parts that workloads share are drawn from separate seeds, so that workloads generated separately with the same seed
and model have the measured similarity: ln(rate) correlates 0.93 between prompts of 512 and of 2,048 tokens,
0.72 between prefill and decode, 0.1 to 0.3 between domains.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from eplb_traces.model_shape import ModelShape
from eplb_traces.synthetic.presets import Law, Workload

# Shares of the variance of ln(rate) that workloads have in common. Inside a group: all workloads, those of a domain,
# those of a domain and phase; the rest is individual. Group effect: all workloads; it hardly differs.
_SHARED_BY_ALL = 0.05
_SHARED_BY_DOMAIN = 0.58
_SHARED_BY_PHASE = 0.31
_GROUP_SHARED_BY_ALL = 0.92
_OUTLIER_FROM = 1.8  # standard deviations: 4 % of the experts, 9 of 256
_OUTLIER_RANGE = 1.0  # upper limit of the extra deviation, so that the maximum over all layers stays realistic
_STEEP_START = 0.06  # a smaller value concentrates the decrease on the first experts


def expert_rates(workload: Workload, shape: ModelShape, seed: int) -> NDArray[np.float64]:
    """Draw the share of each expert in the choices of its layer: [L, E], rows sum to 1."""
    if workload.law is Law.UNIFORM:
        return np.full((shape.num_layers, shape.num_experts), 1 / shape.num_experts)
    if workload.law is Law.ZIPF:
        ranks = _order(workload, shape, seed) + 1.0
        weights = ranks**-workload.sigma
    else:
        weights = np.exp(_log_rates(workload, shape, seed))
    rates: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return rates


def stream(seed: int, *names: str) -> np.random.Generator:
    """Return an independent random generator for the given names."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _log_rates(workload: Workload, shape: ModelShape, seed: int) -> NDArray[np.float64]:
    """Draw ln(rate) up to a constant: spread inside groups, group effect, decrease over the index; [L, E]."""
    within = _deviation(workload, shape, seed)
    hot = within + workload.outlier * np.clip(within - _OUTLIER_FROM, 0, _OUTLIER_RANGE)
    skewed = np.where(within > 0, hot, workload.cold_side * within)
    layer_deviation = stream(seed, "layer", workload.domain).standard_normal((shape.num_layers, 1))
    sigma = workload.sigma * np.exp(workload.layer_spread * layer_deviation)
    size = (shape.num_layers, shape.num_expert_groups)
    group = np.sqrt(_GROUP_SHARED_BY_ALL) * stream(seed, "group").standard_normal(size)
    group += np.sqrt(1 - _GROUP_SHARED_BY_ALL) * stream(seed, "group", workload.name).standard_normal(size)
    index = (np.arange(shape.num_experts) + 0.5) / shape.num_experts
    decrease = -workload.index_slope * np.log(index + _STEEP_START)
    log_rates: NDArray[np.float64] = (
        sigma * skewed + np.repeat(workload.group_sigma * group, shape.experts_per_group, axis=1) + decrease
    )
    return log_rates


def _deviation(workload: Workload, shape: ModelShape, seed: int) -> NDArray[np.float64]:
    """Draw a standard normal [L, E], correlated with workloads of the same domain or phase."""
    parts = (
        (_SHARED_BY_ALL, stream(seed, "all")),
        (_SHARED_BY_DOMAIN, stream(seed, "domain", workload.domain)),
        (_SHARED_BY_PHASE, stream(seed, "phase", workload.domain, workload.phase)),
        (1 - _SHARED_BY_ALL - _SHARED_BY_DOMAIN - _SHARED_BY_PHASE, stream(seed, "own", workload.name)),
    )
    deviation = np.zeros((shape.num_layers, shape.num_experts))
    for share, generator in parts:
        deviation += np.sqrt(share) * generator.standard_normal(deviation.shape)
    return deviation


def _order(workload: Workload, shape: ModelShape, seed: int) -> NDArray[np.int64]:
    """Rank of each expert in its layer, 0 for the highest rate, shuffled: [L, E]."""
    ranks = np.tile(np.arange(shape.num_experts), (shape.num_layers, 1))
    return stream(seed, "order", workload.name).permuted(ranks, axis=1)
