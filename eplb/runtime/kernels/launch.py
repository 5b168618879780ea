"""Helpers of the kernel launchers: powers of two, the interpreter, the number of programs that fit on a GPU."""

import os

import torch

from eplb.errors import InputError

_FEWEST_REGISTERS = 40
_REGISTERS_OF_SM = 65536
_OF_H200 = 132
_MOST_SUMMING_THREADS = 1024
"""64 registers a thread."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def power_of_two(number: int) -> int:
    """Smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def tile(number: int, most: int) -> int:
    """Columns of a tile: all of them, rounded up to a power of two, but at most `most`."""
    return min(power_of_two(number), most)


def nanoseconds(seconds: float) -> int:
    """The time as the kernels take it."""
    return int(seconds * 1e9)


def resident_warps(programs: int, most: int, device: torch.device) -> int:
    """Warps of a program, at most `most`, with which a resident grid has registers for kernels that sum rows."""
    warps = most
    while device.type == "cuda" and warps > 1 and _resident_threads(programs, warps, device) > _MOST_SUMMING_THREADS:
        warps //= 2
    return warps


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; those of an H200 on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _OF_H200


def _resident_threads(programs: int, warps: int, device: torch.device) -> int:
    """Threads of a multiprocessor when all programs are resident together."""
    return -(-programs // num_multiprocessors(device)) * warps * 32


def resident_registers(programs: int, warps: int, device: torch.device) -> int:
    """Most registers of a thread with which all programs of a grid are resident together; 255 in the interpreter.

    Raises
    ------
    InputError
        If so few are left that the grid cannot be resident.
    """
    if device.type != "cuda":
        return 255
    threads = _resident_threads(programs, warps, device)
    registers = min(_REGISTERS_OF_SM // threads // 8 * 8, 255)
    if registers < _FEWEST_REGISTERS or threads > 2048:
        raise InputError(
            f"{programs} programs of {warps} warps, {threads} threads a multiprocessor: {registers} registers a "
            f"thread, expected at least {_FEWEST_REGISTERS} so that all programs are resident"
        )
    return registers
