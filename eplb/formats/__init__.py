"""Knows every dialect of expert-map files: the table FORMATS, and how to find the right entry for a file.

A new dialect is a new file and one line in the table.
"""

from pathlib import Path
from typing import Final

from eplb.core.problem import Plan
from eplb.errors import FormatError, UnknownNameError
from eplb.formats.ascend import Ascend
from eplb.formats.deepseek import Deepseek
from eplb.formats.json_fields import load_json
from eplb.formats.native import NATIVE_KIND, Native
from eplb.formats.omni import Omni
from eplb.formats.protocol import Format, ReadHints
from eplb.formats.sglang import Sglang
from eplb.formats.sidecar import SIDECAR_KIND, SIDECAR_SUFFIX
from eplb.formats.trtllm import Trtllm
from eplb.formats.vllm import RECORD_TYPE, Vllm

__all__ = ["FORMATS", "Format", "ReadHints", "detect_format", "find_format", "read_plan", "write_plan"]

_ALL: Final[tuple[Format, ...]] = (Native(), Sglang(), Vllm(), Ascend(), Trtllm(), Deepseek(), Omni())
FORMATS: Final[dict[str, Format]] = {entry.name: entry for entry in _ALL}

_FORMAT_OF_SUFFIX: Final = {
    ".pt": "sglang",
    ".jsonl": "vllm",
    ".yaml": "trtllm",
    ".yml": "trtllm",
    ".npz": "deepseek",
    ".npy": "omni",
}
_NO_HINTS: Final = ReadHints()


def find_format(name: str) -> Format:
    """The format of a name.

    Raises
    ------
    UnknownNameError
        Listing the names there are.
    """
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    return FORMATS[name]


def detect_format(path: str | Path) -> Format:
    """The format of a file by its suffix and, for JSON, by what is in it.

    Raises
    ------
    FormatError
        If neither tells, or the file is no placement at all.
    """
    path = Path(path)
    if path.suffix in _FORMAT_OF_SUFFIX:
        return FORMATS[_FORMAT_OF_SUFFIX[path.suffix]]
    if path.suffix != ".json":
        raise FormatError(f"{path}: the suffix {path.suffix!r} is no format's: give --from {'|'.join(FORMATS)}")
    return FORMATS[_detect_json(path, load_json(path))]


def _detect_json(path: Path, value: object) -> str:
    if isinstance(value, list):
        return "vllm"
    fields = value if isinstance(value, dict) else {}
    if fields.get("format") == SIDECAR_KIND:
        placement = path.name.removesuffix(SIDECAR_SUFFIX)
        raise FormatError(f"{path}: the record beside a placement, not the placement: give {placement}")
    found = {
        "native": fields.get("format") == NATIVE_KIND,
        "vllm": fields.get("record_type") == RECORD_TYPE,
        "ascend": "layer_list" in fields,
        "sglang": "logical_count" in fields or ("physical_to_logical_map" in fields and "format" not in fields),
    }
    names = [name for name, matches in found.items() if matches]
    if len(names) != 1:
        what = f"looks like {' and '.join(names)}" if names else "no format has these keys"
        raise FormatError(f"{path}: {what}: give --from {'|'.join(FORMATS)}")
    return names[0]


def read_plan(path: str | Path, format: str | None = None, hints: ReadHints = _NO_HINTS) -> Plan:
    """The plan in a file of any format.

    Parameters
    ----------
    path
        The file.
    format
        Name of its format; found by `detect_format` when None.
    hints
        What the file does not say.

    Raises
    ------
    FormatError
        See `Format.read`.
    UnknownNameError
        For a name that is no format's.
    """
    entry = detect_format(path) if format is None else find_format(format)
    return entry.read(Path(path), hints)


def write_plan(plan: Plan, path: str | Path, format: str = "native") -> None:
    """Check a plan against a format's engine, then write it, whole or not at all.

    Raises
    ------
    FormatError
        See `Format.write`.
    UnknownNameError
        For a name that is no format's.
    """
    find_format(format).write(plan, Path(path))
