"""Knows which version of eplb is installed. Looked up late: reading an installation's metadata is slow."""

from functools import cache


@cache
def eplb_version() -> str:
    """The version of the installed package, "unknown" in a bare checkout."""
    from importlib import metadata

    try:
        return metadata.version("eplb")
    except metadata.PackageNotFoundError:
        return "unknown"
