"""Reads the version of the installed package, on first access because reading an installation's metadata is slow."""

from functools import cache

__version__: str


@cache
def eplb_version() -> str:
    """The version of the installed package, "unknown" in a bare checkout."""
    from importlib import metadata

    try:
        return metadata.version("eplb")
    except metadata.PackageNotFoundError:
        return "unknown"


def __getattr__(name: str) -> str:
    if name == "__version__":
        return eplb_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
