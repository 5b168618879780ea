"""Reads the token-level trace of `--trace`, of the model that the other options describe."""

from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.arguments.reading import Reading

if TYPE_CHECKING:
    from eplb_traces import RoutingTrace


def read_token_trace(path: Path, reading: Reading) -> "RoutingTrace":
    """The trace, of the model and without the experts that the options describe; the others are about LOAD."""
    import eplb

    of_model = reading.options()
    return eplb.read_trace(
        path,
        of_model.num_experts,
        top_k=of_model.top_k,
        moe_layer_ids=of_model.moe_layer_ids,
        num_hidden_layers=of_model.num_hidden_layers,
        ignore_ids=of_model.ignore_ids,
        ignore_columns=of_model.ignore_columns,
    )
