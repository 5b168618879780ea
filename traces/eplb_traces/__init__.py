"""Room 1: what the router did. Expert loads, routing traces, their files; nothing of placement."""

from eplb_traces.errors import EplbError, InputError, MissingExtraError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.writers import LOAD_WRITERS, write_load, write_trace
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers import READERS, read_load, read_trace
from eplb_traces.routing_trace import RoutingTrace, TokenBatch
from eplb_traces.synthetic.presets import PRESETS
from eplb_traces.synthetic.synthetic import synthesize_load, synthesize_trace

__all__ = [
    "LOAD_WRITERS",
    "PRESETS",
    "READERS",
    "EplbError",
    "ExpertLoad",
    "InputError",
    "MissingExtraError",
    "ModelShape",
    "RoutingTrace",
    "TokenBatch",
    "read_load",
    "read_trace",
    "synthesize_load",
    "synthesize_trace",
    "write_load",
    "write_trace",
]
