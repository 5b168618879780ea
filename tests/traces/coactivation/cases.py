"""Small traces of one layer, and tables counted from traces."""

import numpy as np
from hypothesis import strategies as st

from eplb_traces import ModelShape, RoutingTrace, TokenBatch
from eplb_traces.coactivation.layer_coactivation import coactivation
from tests.traces.examples import traces


def trace_of(choices, num_experts, step=None, request=None):
    """One layer, one batch, from lists of K experts."""
    ids = np.array(choices)[:, None, :]
    zeros = np.zeros(len(ids), dtype=int)
    shape = ModelShape(1, num_experts, ids.shape[2])
    return RoutingTrace(shape, [TokenBatch(shape, ids, zeros if step is None else step, request or zeros)])


@st.composite
def tables(draw):
    """Co-activation of one layer; sometimes of experts that nobody chooses."""
    trace = draw(traces())
    return coactivation(trace, draw(st.integers(0, trace.shape.num_layers - 1)))
