"""Helpers of the kernel launchers: powers of two, the interpreter, the number of programs that fit on a GPU."""

import os


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
