"""Room 1: what the router did. Expert loads, routing traces, their files; nothing of placement."""

from eplb_traces.errors import EplbError, InputError, MissingExtraError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape

__all__ = ["EplbError", "ExpertLoad", "InputError", "MissingExtraError", "ModelShape"]
