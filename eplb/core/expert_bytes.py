"""Decides how many bytes one expert has: what the caller gave, or what a recording of the model holds."""

from eplb.errors import InputError
from eplb_traces import ModelShape

DEEPSEEK_V3_EXPERT_BYTES = 3.0 * 7168 * 2048
"""One expert of DeepSeek-V3 in FP8: three matrices of hidden size 7168 x 2048, one byte each."""


def known_expert_bytes(given: float | None, *shapes: ModelShape) -> float | None:
    """Bytes of one expert of one layer; None where nobody knows them: replicas are counted in slots then.

    Parameters
    ----------
    given
        What the caller gave.
    shapes
        Models of the load or the plans, the first that holds the bytes decides.

    Raises
    ------
    InputError
        If the number given is not finite and > 0.
    """
    if given is None:
        return next((shape.expert_bytes for shape in shapes if shape.expert_bytes is not None), None)
    if not 0 < given < float("inf"):
        raise InputError(f"expert_bytes = {given}: expected finite and > 0")
    return given
