"""Small real traces shipped with the package; their origin is described in README.md of this folder."""

from pathlib import Path

from eplb_traces.errors import InputError

SAMPLES = ("moe-435m.parquet", "moe-435m-windows.npz")


def sample_path(name: str) -> Path:
    """Return the path of a sample.

    Raises
    ------
    InputError
        If `name` is not in SAMPLES.
    """
    if name not in SAMPLES:
        raise InputError(f"sample {name!r} is unknown: expected one of {', '.join(SAMPLES)}")
    return Path(__file__).with_name(name)
