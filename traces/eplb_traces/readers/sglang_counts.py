"""Converts SGLang's counts, with one row a hidden layer, to a load of the MoE layers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.layers import hidden_layer_rows
from eplb_traces.readers.torch_files import kind_of


def reading_of_counts(logical_count: NDArray[np.float64], options: ReadOptions, form: str) -> Reading:
    """Build a load from SGLang's ``logical_count``.

    Rows are the layers of the model; `layers.moe_rows` decides which of them are MoE layers. A step without any token
    is an unused place of the recorder's ring buffer: it is dropped.

    Parameters
    ----------
    logical_count
        [num_hidden_layers, E] or [steps, num_hidden_layers, E]
    options
        The caller's model.
    form
        Name of the form in messages.

    Raises
    ------
    InputError
        If there is a NaN, an infinity or a negative count, every count is zero, or a layer is missing.
    """
    counts = ExpertLoad(logical_count).tokens
    layers = hidden_layer_rows(np.asarray(~counts.any(axis=(0, 2))), options)
    steps: NDArray[np.bool_] = np.any(counts > 0, axis=(1, 2))
    shape = ModelShape(
        len(layers.rows),
        counts.shape[2],
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    num_unused = int((~steps).sum())
    unused = (f"{num_unused} of {len(steps)} steps without a token left out",) if num_unused else ()
    load = ExpertLoad(counts[steps][:, layers.rows], shape=shape)
    return Reading(content=load, form=f"{form} [steps, layers, experts]", notes=layers.notes + unused)


def shape_of_moe_layers(moe_layers: NDArray[np.bool_], num_experts: int, *, top_k: int | None = None) -> ModelShape:
    """Describe a model from the mask [num_hidden_layers] of its MoE layers."""
    layer_ids = tuple(int(layer) for layer in np.flatnonzero(moe_layers))
    return ModelShape(len(layer_ids), num_experts, top_k, moe_layer_ids=layer_ids, num_hidden_layers=len(moe_layers))


def numbers(values: object, place: str) -> NDArray[Any]:
    """Return a tensor, or what else stood for one, as a numpy array of integers or floats."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: {error}") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{place} is a {kind_of(values)}: expected a tensor of numbers")
    return array
