"""Finds the dialect of a file by suffix and content, and names files that hold something else than data."""

from collections.abc import Mapping
from pathlib import Path

from eplb_traces.errors import InputError
from eplb_traces.files.limits import check_regular
from eplb_traces.readers.dialect import Dialect, first_bytes

_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_OLDER_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j"  # the magic number before torch's zip files, itself pickled
_LFS = b"version https://git-lfs.github.com/spec/"


def find_dialect(path: Path, name: str | None, dialects: Mapping[str, Dialect]) -> tuple[str, Dialect]:
    """Name and dialect: the named one, else by suffix, and by content where a suffix has several dialects or none.

    Raises
    ------
    InputError
        For an unknown name, a missing file, a pipe or device, a Git LFS pointer, a pickle, or a file that no dialect
        recognises.
    """
    if name is not None and name not in dialects:
        raise InputError(f"format {name!r} is unknown: expected one of {', '.join(dialects)}")
    if not path.exists():
        raise InputError("no such file or folder")
    check_regular(path)
    if first_bytes(path, len(_LFS)) == _LFS:
        raise InputError("a Git LFS pointer, not the data: run `git lfs pull` where the file was cloned")
    if _is_pickle(path):
        raise InputError(
            "a Python pickle, which can run any code and is not read: save the arrays as .npz, .safetensors or with "
            "torch.save"
        )
    if name is not None:
        return name, dialects[name]
    suffix = suffix_of(path)
    by_suffix = {n: d for n, d in dialects.items() if suffix and suffix in d.SUFFIXES}
    if len(by_suffix) == 1:
        return next(iter(by_suffix.items()))
    candidates = by_suffix or dialects
    for found in candidates.items():
        if found[1].recognises(path):
            return found
    if by_suffix:
        forms = "; ".join(f"{n}: {d.RECOGNISED_BY}" for n, d in by_suffix.items())
        raise InputError(f"{_first_sight(path)}: expected one of the known forms of {suffix} ({forms})")
    raise InputError(f"neither suffix nor content is of a known format: give format, one of {', '.join(dialects)}")


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle of protocol 2 to 5 that torch has not written."""
    head = first_bytes(path, len(_OLDER_TORCH))
    return head.startswith(_PICKLE) and head != _OLDER_TORCH


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, lower case: `.csv` for `load.csv.gz`; nothing for a folder."""
    if path.is_dir():
        return ""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] == ".gz":
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _first_sight(path: Path) -> str:
    """What a JSON text, or the first line of JSON lines, shows: its keys. Of other files, how they begin."""
    import json

    head = first_bytes(path, 16)
    if head.startswith(b"PK"):
        return "a zip archive, cut or of another kind"
    if head.startswith(b"\x1f\x8b"):
        return "compressed with gzip, which only tables (.csv, .tsv) may be"
    if b"\0" in head or head.startswith(b"\x80"):
        return f"not JSON, begins with {head!r}"
    text = path.read_bytes()
    first, _, rest = text.partition(b"\n")
    try:
        try:
            document = json.loads(text)
        except ValueError:
            if not rest.strip():
                raise
            document = json.loads(first)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if isinstance(document, dict):
        return f"a JSON object with the keys {', '.join(map(str, document)) or '(none)'}"
    return f"a JSON {type(document).__name__}"
