"""Reads and writes placement files of every dialect: the table FORMATS, and detection of a file's dialect.

A new dialect is a new file and one line in the table; one that an engine loads has a line in `engine_check` too.
"""

from pathlib import Path
from typing import Final

from eplb.core.problem import Plan
from eplb.errors import FormatError, UnknownNameError
from eplb.formats.ascend import Ascend
from eplb.formats.deepseek import Deepseek
from eplb.formats.native import Native
from eplb.formats.omni import Omni
from eplb.formats.protocol import NO_HINTS, Format, ParsedFile, ReadHints, RecordStatus, check_suffix
from eplb.formats.sglang import Sglang
from eplb.formats.sidecar import SIDECAR_KIND, SIDECAR_SUFFIX, write_encoded
from eplb.formats.source_file import SourceFile
from eplb.formats.trtllm import Trtllm
from eplb.formats.vllm import Vllm

__all__ = [
    "FORMATS",
    "NO_HINTS",
    "Format",
    "ParsedFile",
    "ReadHints",
    "RecordStatus",
    "detect_format",
    "find_format",
    "parse_file",
    "read_plan",
    "write_plan",
]

_ALL: Final[tuple[Format, ...]] = (Native(), Sglang(), Vllm(), Ascend(), Trtllm(), Deepseek(), Omni())
FORMATS: Final[dict[str, Format]] = {entry.name: entry for entry in _ALL}
KEEP_RANK_IDS: Final = ("native", "sglang")
"""Formats that can hold a plan in which lost ranks keep their ids."""


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
    """The format of a file by its suffix and, for JSON, by its top-level keys.

    Raises
    ------
    FormatError
        If no format or more than one recognises the file, or it is the sidecar of a placement.
    """
    return _detect(SourceFile(Path(path)))


def _detect(source: SourceFile) -> Format:
    path, ask = source.path, f"give --from {'|'.join(FORMATS)}"
    if not any(path.suffix in entry.suffixes for entry in FORMATS.values()):
        raise FormatError(f"{path}: the suffix {path.suffix!r} is no format's: {ask}")
    if source.json_members.get("format") == SIDECAR_KIND:
        placement = path.name.removesuffix(SIDECAR_SUFFIX)
        raise FormatError(f"{path}: the record beside a placement, not the placement: give {placement}")
    found = [entry for entry in FORMATS.values() if entry.recognises(source)]
    if len(found) != 1:
        names = " and ".join(entry.name for entry in found)
        what = f"looks like {names}" if found else "no format has these keys"
        raise FormatError(f"{path}: {what}: {ask}")
    return found[0]


def parse_file(path: str | Path, format: str | None = None) -> ParsedFile:
    """A file of any format, read and parsed once; `ParsedFile.plan` makes plans of it with any hints.

    Parameters
    ----------
    path
        The file.
    format
        Name of its format; found as by `detect_format` when None.

    Raises
    ------
    FormatError
        See `Format.parse`.
    UnknownNameError
        For a name that is no format's.
    """
    source = SourceFile(Path(path))
    entry = _detect(source) if format is None else find_format(format)
    return entry.parse(source)


def read_plan(path: str | Path, format: str | None = None, hints: ReadHints = NO_HINTS) -> Plan:
    """The plan in a file of any format.

    Parameters
    ----------
    path
        The file.
    format
        Name of its format; found as by `detect_format` when None.
    hints
        What the file does not hold.

    Raises
    ------
    FormatError
        See `Format.parse` and `ParsedFile.plan`.
    UnknownNameError
        For a name that is no format's.
    """
    return parse_file(path, format).plan(hints)


def write_plan(plan: Plan, path: str | Path, format: str = "native") -> None:
    """Check a plan against a format's engine, then write the file and, beside an engine's file, the sidecar.

    Raises
    ------
    FormatError
        See `Format.encode`, for a suffix that is not the format's, and for a plan in which lost ranks keep their ids if
        the format cannot hold it.
    InputError
        If the path cannot be written; the old file stays as it was.
    UnknownNameError
        For a name that is no format's.
    """
    entry, path = find_format(format), Path(path)
    check_suffix(entry, path)
    if plan.absent_ranks and entry.name not in KEEP_RANK_IDS:
        raise FormatError(
            f"{path}: ranks {list(plan.absent_ranks)} are lost and keep their ids: the {entry.name} format has no "
            f"columns for them, expected {' or '.join(KEEP_RANK_IDS)}"
        )
    write_encoded(path, entry.encode(plan, path.suffix), entry.name)
