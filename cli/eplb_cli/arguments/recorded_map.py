"""Reads the logical expert of each slot from a placement file of any dialect."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def recorded_map(
    path: Path, num_experts: int | None, moe_layer_ids: tuple[int, ...] | None, num_hidden_layers: int | None
) -> "NDArray[np.int32]":
    """[L, P] the logical expert of each slot; the ranks of the file, which need not be known, do not matter.

    Raises
    ------
    FormatError
        For a file that is no placement, or that contradicts the model.
    """
    from eplb.errors import FormatError
    from eplb.formats import ReadHints, parse_file
    from eplb_traces import ModelShape
    from eplb_traces.errors import naming_place

    shape = None
    if moe_layer_ids is not None and num_experts is not None:
        shape = ModelShape(
            len(moe_layer_ids), num_experts, moe_layer_ids=moe_layer_ids, num_hidden_layers=num_hidden_layers
        )
    with naming_place(path):
        parsed = parse_file(path)
        try:
            plan = parsed.plan(ReadHints(num_experts=num_experts, shape=shape))
        except FormatError:  # a file without the number of ranks: any number gives the same map
            plan = parsed.plan(ReadHints(num_experts=num_experts, shape=shape, num_ranks=1))
    return plan.placement.physical_to_logical_map
