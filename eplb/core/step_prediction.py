"""Holds the step times that a plan made for a phase claims, beside those of other plans."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class PredictedStep:
    """One placement of the same load."""

    name: str
    """What it is: "this plan"."""
    num_slots: int
    """Slots of a layer."""
    num_cold: float
    """Of these, slots that get no tokens, mean of layers."""
    seconds: float
    """Expert FFN of the slowest rank: mean of drawn batches and of the layers with load."""


@final
@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """What a plan was made for, and the step times that were predicted."""

    phase: str
    tokens_per_rank: int
    model: str
    dtype: str
    """Type of the weights."""
    gpu: str
    """With whether it was measured: "NVIDIA H200 (measured)"."""
    steps: tuple[PredictedStep, ...]

    @property
    def title(self) -> str:
        """What the step times are of."""
        return f"{self.phase}, {self.tokens_per_rank} tokens a rank, {self.model} in {self.dtype}, {self.gpu}"
