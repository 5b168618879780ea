"""Describes the load of the experts in sentences, without plans."""

import numpy as np
from numpy.typing import NDArray

from eplb.report.summary_text import counted, layer_name
from eplb_traces import ExpertLoad


def max_over_mean_expert(load: ExpertLoad) -> NDArray[np.float64]:
    """[L] tokens of the busiest expert over those of the mean expert, for the summed load; nan without tokens."""
    total = load.total
    mean = total.mean(axis=1)
    return np.divide(total.max(axis=1), mean, out=np.full(len(mean), np.nan), where=mean > 0)


def traffic_over_all(title: str, load: ExpertLoad) -> str:
    """Skew of the load over all layers: one sentence per line."""
    ratio = max_over_mean_expert(load)
    worst = int(np.nanargmax(ratio))
    unused = int((load.total == 0).sum())
    of_half = _experts_of_half(load)[load.total.any(axis=1)].mean()
    sentences = [
        f"{title}: {counted(load.num_layers, 'layer')} of {counted(load.num_experts, 'expert')}; nothing is planned.",
        f"The busiest expert of a layer gets {np.nanmean(ratio):.2f}x the mean on average and {ratio[worst]:.2f}x in "
        f"{layer_name(load.shape, worst)}.",
        f"Half of a layer's tokens go to {of_half:.1f} of {counted(load.num_experts, 'expert')} on average.",
    ]
    if unused:
        sentences.append(f"{counted(unused, 'expert')} of all layers got no token.")
    return "\n".join(sentences)


def traffic_of_layer(layer: int, load: ExpertLoad) -> str:
    """Skew of the load of one layer."""
    name, total = layer_name(load.shape, layer), load.total[layer]
    if not total.any():
        return f"{name}: no tokens"
    busiest = int(total.argmax())
    of_half, unused = int(_experts_of_half(load)[layer]), int((total == 0).sum())
    return (
        f"{name}: expert {busiest} gets {total[busiest] / total.mean():.2f}x the mean expert; half of the tokens go to "
        f"{counted(of_half, 'expert')}; {counted(unused, 'expert')} without tokens"
    )


def _experts_of_half(load: ExpertLoad) -> NDArray[np.int64]:
    """[L] the fewest experts with half of the tokens of a layer; 1 without tokens."""
    from_largest = -np.sort(-load.total, axis=1)
    reached = np.cumsum(from_largest, axis=1) >= from_largest.sum(axis=1, keepdims=True) / 2
    return reached.argmax(axis=1) + 1
