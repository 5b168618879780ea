"""Computes statistics of loads and traces by layer: load profile, total variation over time, locality of groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.coactivation.layer_coactivation import PairShare, coactivations
from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.routing_trace import RoutingTrace

_ROUNDING = 1e-12


@final
@dataclass(frozen=True, eq=False)
class Drift:
    """Total variation between the load of a window and that of all windows; nan for a layer without load."""

    num_windows: int
    distance: NDArray[np.float64]
    """[L] total variation, 0 to 1: the share of a window's choices that would have to go to other experts to match the
    whole; mean over windows, weighted by their choices."""
    by_chance: NDArray[np.float64]
    """[L] its approximate value if every choice were drawn independently from the distribution of the whole."""

    @property
    def mean(self) -> float:
        """Mean distance of the layers with load."""
        return _mean_of_known(self.distance)

    @property
    def mean_by_chance(self) -> float:
        """Mean of `by_chance` of the layers with load."""
        return _mean_of_known(self.by_chance)


def drift(load: ExpertLoad) -> Drift:
    """Compare every window with the whole.

    The distance of a window that is the whole is 0, so one window has no drift. The value by chance of n of N choices
    is the normal approximation: the share p of an expert differs by sqrt(2 / pi * p (1 - p) (1 / n - 1 / N)).
    """
    whole, total = _shares(load.total)
    # N times 1 / N, where windows count once: multiples of 1 / N do not overflow.
    spread = np.einsum("w,wle->l", load.weights**2, load.tokens) * _inverse(total)
    weighted = np.zeros((2, load.num_layers))  # distance and chance times choices
    for tokens, weight in zip(load.tokens, load.weights, strict=True):
        share, choices = _shares(tokens)
        rest = total * _inverse(choices) - 2 * weight + spread
        rest = np.where(rest > _ROUNDING, rest, 0.0) * _inverse(total)  # 1 / n - 1 / N
        chance = np.sqrt(2 / np.pi * whole * (1 - whole) * rest[:, None])
        weighted += weight * choices * 0.5 * np.stack([np.abs(share - whole).sum(axis=1), chance.sum(axis=1)])
    of_layer = np.where(total > 0, weighted * _inverse(total), np.nan)
    return Drift(load.num_windows, of_layer[0], of_layer[1])


def load_profile(load: ExpertLoad, num_blocks: int) -> NDArray[np.float64]:
    """Average the load of neighbouring experts.

    Parameters
    ----------
    load
        Its windows are summed.
    num_blocks
        Blocks of neighbours, 1 to E; their sizes differ by at most one expert.

    Returns
    -------
    NDArray
        [L, blocks] mean load of a block's experts over that of the layer's: 1 is the mean; nan for a layer without
        load.
    """
    if not 1 <= num_blocks <= load.num_experts:
        raise InputError(f"num_blocks = {num_blocks}: expected 1 to {load.num_experts} experts")
    edges = np.arange(num_blocks + 1) * load.num_experts // num_blocks
    of_block = np.add.reduceat(load.total, edges[:-1], axis=1) / np.diff(edges)
    mean = load.total.mean(axis=1, keepdims=True)
    return np.divide(of_block, mean, out=np.full_like(of_block, np.nan), where=mean > 0)


def group_affinity(trace: RoutingTrace) -> list[PairShare]:
    """For every layer, the share of pairs of a token's choices that are inside one expert group of the model."""
    group = np.arange(trace.shape.num_experts) // trace.shape.experts_per_group
    return [counted.share_inside(group) for counted in coactivations(trace)]


def mean_share(shares: Sequence[PairShare]) -> PairShare:
    """The mean over the layers that have pairs; nan if none has."""
    return PairShare(
        _mean_of_known(np.array([share.observed for share in shares])),
        _mean_of_known(np.array([share.expected for share in shares])),
    )


def _mean_of_known(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _shares(tokens: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[L, E] share of each expert, 0 in a layer without load, and the [L] sums."""
    choices = tokens.sum(axis=1)
    return tokens * _inverse(choices)[:, None], choices


def _inverse(choices: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1.0, choices, out=np.zeros_like(choices), where=choices > 0)
