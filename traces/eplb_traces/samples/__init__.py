"""Small real traces that come with the package; README.md beside them says where each is from."""

from pathlib import Path

from eplb_traces.errors import InputError

SAMPLES = ("moe-435m.parquet", "moe-435m-windows.npz")


def sample_path(name: str) -> Path:
    """Return where a sample lies.

    Raises
    ------
    InputError
        If `name` is none of SAMPLES.
    """
    if name not in SAMPLES:
        raise InputError(f"sample {name!r} is unknown: expected one of {', '.join(SAMPLES)}")
    return Path(__file__).with_name(name)
