"""Writes a report as a folder: pictures, CSV tables and a Markdown page that shows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from eplb.errors import InputError, MissingExtraError
from eplb.report import tables
from eplb.report.contents import ReportContents
from eplb.report.figures import Closeups, album, close_up
from eplb.report.style import ImageFormat, save
from eplb.report.summary_page import summary_page
from eplb_traces.files.atomic_file import atomic_write

if TYPE_CHECKING:
    import pandas as pd

PAGE: Final = "summary.md"
_TOP_PAIRS = 100


@final
@dataclass(frozen=True)
class FolderOptions:
    """What a user may choose of a report folder."""

    layers: tuple[int, ...] = ()
    """Layers to show closely; by default the one that is worst in the first plan."""
    image_format: ImageFormat = ImageFormat.PNG


def write_folder(contents: ReportContents, folder: Path, options: FolderOptions = FolderOptions()) -> tuple[Path, ...]:
    """Write the report, over files of the same names that may be there.

    Parameters
    ----------
    contents
        What is reported.
    folder
        Made if it is missing; its parent has to exist.
    options
        What to show and how.

    Returns
    -------
    tuple of Path
        The files, the page first.

    Raises
    ------
    InputError
        For an unknown layer or a folder that cannot be made.
    MissingExtraError
        Without matplotlib or pandas.
    """
    _check_extra()
    closeups = close_up(contents, options.layers)
    _make(folder)
    captions: dict[str, str] = {}
    for picture in album(contents, closeups):
        name = f"{picture.name}.{options.image_format}"
        save(picture.draw(), folder / name)
        captions[name] = picture.caption
    meanings: dict[str, str] = {}
    for name, table in _tables(contents, closeups).items():
        atomic_write(folder / f"{name}.csv", table.to_csv(index=False).encode())
        meanings[f"{name}.csv"] = tables.MEANINGS[name]
    page = summary_page(contents, captions, meanings, closeups.layers)
    atomic_write(folder / PAGE, page.encode())
    return tuple(folder / name for name in (PAGE, *captions, *meanings))


def _tables(contents: ReportContents, closeups: Closeups) -> "dict[str, pd.DataFrame]":
    """{name: table}; those without rows are left out."""
    found = {
        "metrics": tables.metrics(contents),
        "layers": tables.layers(contents),
        "ranks": tables.ranks(contents),
        "experts": tables.experts(contents),
        "windows": tables.windows(contents),
        "migration": tables.migration(contents),
        "redundancy": tables.redundancy(closeups.redundancy),
        "pairs": tables.pairs(closeups.coactivations, _TOP_PAIRS),
        "affinity": tables.affinity(contents, closeups.coactivations),
    }
    return {name: table for name, table in found.items() if len(table)}


def _check_extra() -> None:
    """Before anything is counted, drawn or written."""
    try:
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401  # both are only asked for here
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
