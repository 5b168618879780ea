"""Records what the routers of a running torch model choose."""

from eplb_traces.recorder.recorder import Recording, record

__all__ = ["Recording", "record"]
