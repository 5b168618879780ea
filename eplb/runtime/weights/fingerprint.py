"""Computes 64-bit fingerprints of tensors on their own device.

Not cryptographic: fingerprints detect swapped, stale, torn or corrupted weights, but not deliberate forgery.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_MASK_64 = 2**64 - 1
# Odd constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit numbers: torch multiplies modulo 2 ** 64.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def as_bytes(tensor: Tensor) -> Tensor:
    """A uint8 view of a contiguous tensor. Every communicator supports bytes; gloo does not support float8."""
    return tensor.view(-1).view(torch.uint8)


def fingerprint(tensor: Tensor) -> Tensor:
    """64-bit hash of a tensor's bytes and their order: a scalar int64 tensor on its device, without synchronisation.

    The sum over 8-byte words of a mix of word and position; sums modulo 2 ** 64 do not depend on the order.
    """
    data = as_bytes(tensor.contiguous())
    padded = torch.nn.functional.pad(data, (0, -data.numel() % 8)).clone()
    words = padded.view(torch.int64)
    position = torch.arange(1, words.numel() + 1, device=tensor.device, dtype=torch.int64)
    return _mix(words ^ _mix(position * _STEP)).sum() + data.numel()


def combined(of_part: Mapping[str, Tensor]) -> int:
    """One unsigned 64-bit number from several fingerprints, combined in the order of the mapping."""
    seed = torch.zeros((), dtype=torch.int64)
    for value in of_part.values():
        seed = _mix(seed * _FIRST + value.cpu() + _STEP)
    return int(seed) & _MASK_64


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own shift is arithmetic."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
