"""Counts the cores that this process may use."""

import os


def usable_cores() -> int:
    """The cores that the scheduler gives to this process; all of the machine on systems without that call, as macOS."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
