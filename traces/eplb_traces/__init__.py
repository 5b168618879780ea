"""Reads, writes and makes expert loads and routing traces: what the router did. Nothing of placement.

A public name is imported on first access; importing `eplb_traces` loads nothing else.
"""

from typing import TYPE_CHECKING

from eplb_traces.lazy_names import lazy_names

if TYPE_CHECKING:
    from eplb_traces.errors import EplbError, InputError, MissingExtraError
    from eplb_traces.expert_load import ExpertLoad
    from eplb_traces.files.writers import LOAD_WRITERS, write_load, write_trace
    from eplb_traces.model_shape import ModelShape
    from eplb_traces.readers import READERS, read, read_load, read_trace
    from eplb_traces.readers.dialect import Reading, ReadOptions
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
    "ReadOptions",
    "Reading",
    "RoutingTrace",
    "TokenBatch",
    "read",
    "read_load",
    "read_trace",
    "synthesize_load",
    "synthesize_trace",
    "write_load",
    "write_trace",
]

# Public name -> the module that defines it, as in the imports above, which type checkers read.
_HOME_OF = {
    "LOAD_WRITERS": "eplb_traces.files.writers",
    "PRESETS": "eplb_traces.synthetic.presets",
    "READERS": "eplb_traces.readers",
    "EplbError": "eplb_traces.errors",
    "ExpertLoad": "eplb_traces.expert_load",
    "InputError": "eplb_traces.errors",
    "MissingExtraError": "eplb_traces.errors",
    "ModelShape": "eplb_traces.model_shape",
    "ReadOptions": "eplb_traces.readers.dialect",
    "Reading": "eplb_traces.readers.dialect",
    "RoutingTrace": "eplb_traces.routing_trace",
    "TokenBatch": "eplb_traces.routing_trace",
    "read": "eplb_traces.readers",
    "read_load": "eplb_traces.readers",
    "read_trace": "eplb_traces.readers",
    "synthesize_load": "eplb_traces.synthetic.synthetic",
    "synthesize_trace": "eplb_traces.synthetic.synthetic",
    "write_load": "eplb_traces.files.writers",
    "write_trace": "eplb_traces.files.writers",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME_OF, __all__)
