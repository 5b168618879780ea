"""Experts for verification: weights are small integers, so sums are exact and any two experts differ.

Letters: S slots of this process, M rows, H hidden.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

from eplb.runtime.weights.fingerprint import fingerprint


@final
class ProbeExperts:
    """One linear expert in each slot of this process, for one layer at a time; addresses never change.

    Parameters
    ----------
    num_slots
        S.
    hidden
        H.
    device
        Where the weights live.
    """

    weight_SHH: Tensor
    """[S, H, H] float32, integers from -2 to 2; zeros in empty slots."""

    def __init__(self, num_slots: int, hidden: int, device: torch.device | str) -> None:
        self.weight_SHH = torch.zeros((num_slots, hidden, hidden), dtype=torch.float32, device=device)

    def load(self, layer: int, expert_of_slot: list[int]) -> None:
        """Write the experts of a layer in place; -1 is an empty slot."""
        for slot, expert in enumerate(expert_of_slot):
            self.weight_SHH[slot].copy_(probe_weight(layer, expert, hidden=self.weight_SHH.shape[1]))

    def fingerprints(self) -> list[int]:
        """[S] 64 bits of each slot's weight."""
        return [int(fingerprint(weight)) for weight in self.weight_SHH]

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """[M, H] rows times the weight of their slot."""
        parts = torch.split(x_RH, rows_per_slot.tolist())
        products = [part @ weight.to(part.dtype) for part, weight in zip(parts, self.weight_SHH, strict=True)]
        return torch.cat(products)


def probe_weight(layer: int, expert: int, *, hidden: int) -> Tensor:
    """[H, H] float32 weight of a logical expert, the same on every machine; zeros for an empty slot."""
    if expert < 0:
        return torch.zeros((hidden, hidden))
    generator = torch.Generator().manual_seed((layer << 20) + expert)
    return torch.randint(-2, 3, (hidden, hidden), generator=generator).float()


def generator_of(*numbers: int) -> torch.Generator:
    """A CPU generator for each sequence of numbers >= 0.

    torch reads the low 32 bits of a seed, so all numbers and how many there are are mixed into these.
    """
    mixed = np.random.SeedSequence((len(numbers), *numbers)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))
