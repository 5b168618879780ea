"""Small real traces shipped with the package; their origin is described in README.md of this folder."""

from pathlib import Path

from eplb_traces.errors import InputError
from eplb_traces.files.remote import local_copy

SAMPLES = ("moe-435m.parquet", "moe-435m-windows.npz")

SAMPLE_PREFIX = "sample:"
"""`sample:NAME` in place of a path is the sample of that name; NAME may lack its suffix."""


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


def located(path: str | Path) -> Path:
    """Return the path of a file, of the sample that `sample:NAME` names, or of the copy of an object that a URL names.

    Raises
    ------
    InputError
        If there is no sample of that name, or the object cannot be copied.
    MissingExtraError
        For a URL, if fsspec is not installed.
    """
    text = str(path)
    if not text.startswith(SAMPLE_PREFIX):
        return local_copy(path)
    name = text.removeprefix(SAMPLE_PREFIX)
    of_stem = {Path(sample).stem: sample for sample in SAMPLES}
    if name not in SAMPLES and name not in of_stem:
        raise InputError(f"{text}: there is no such sample, expected {' or '.join(SAMPLE_PREFIX + s for s in of_stem)}")
    return sample_path(of_stem.get(name, name))
