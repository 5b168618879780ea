"""Records the expert choices of the routers of a running torch model."""

from eplb_traces.recorder.recorder import Recording, record

__all__ = ["Recording", "record"]
