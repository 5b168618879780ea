"""Writes a report as a folder: figures, CSV tables and a Markdown page that shows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from eplb.errors import IncompleteOutputError, InputError, MissingExtraError
from eplb.report import tables
from eplb.report.contents import ReportContents
from eplb.report.figures import LayerDetails, layer_details, report_figures
from eplb.report.style import ImageFormat, save
from eplb.report.summary_page import summary_page
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.remote import url_of

if TYPE_CHECKING:
    import pandas as pd

PAGE: Final = "summary.md"
_TOP_PAIRS = 100
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
_TOP_EXPERTS = 100


@final
@dataclass(frozen=True)
class FolderOptions:
    """Options of a report folder."""

    layers: tuple[int, ...] = ()
    """Layers to show in detail; by default the worst layer of the first plan."""
    image_format: ImageFormat = ImageFormat.PNG


def write_folder(contents: ReportContents, folder: Path, options: FolderOptions = FolderOptions()) -> tuple[Path, ...]:
    """Write the report; existing files of the same names are replaced.

    The page is written last and an old one is removed first: a folder without it is an interrupted report.

    Parameters
    ----------
    contents
        The contents of the report.
    folder
        Created if it does not exist; its parent must exist.
    options
        Layers and image format.

    Returns
    -------
    tuple of Path
        The files, the page first.

    Raises
    ------
    InputError
        For an unknown layer, or a folder that cannot be created or written to.
    IncompleteOutputError
        If a file cannot be written after the first one.
    MissingExtraError
        Without matplotlib or pandas.
    """
    _check_extra()
    details = layer_details(contents, options.layers)
    _make(folder)
    with _naming_incomplete(folder):
        return _write_files(contents, folder, options, details)


def _write_files(
    contents: ReportContents, folder: Path, options: FolderOptions, details: LayerDetails
) -> tuple[Path, ...]:
    """All files of the report, the page last."""
    (folder / PAGE).unlink(missing_ok=True)
    captions: dict[str, str] = {}
    for picture in report_figures(contents, details):
        name = f"{picture.name}.{options.image_format}"
        save(picture.draw(), folder / name)
        captions[name] = picture.caption
    meanings: dict[str, str] = {}
    for name, table in _tables(contents, details).items():
        atomic_write(folder / f"{name}.csv", csv_bytes(table))
        meanings[f"{name}.csv"] = tables.MEANINGS[name]
    page = summary_page(contents, captions, meanings, details.layers)
    atomic_write(folder / PAGE, page.encode())
    return tuple(folder / name for name in (PAGE, *captions, *meanings))


def _tables(contents: ReportContents, details: LayerDetails) -> "dict[str, pd.DataFrame]":
    """{name: table}; tables without rows are omitted."""
    found = {
        "metrics": tables.metrics(contents),
        "layers": tables.layers(contents),
        "ranks": tables.ranks(contents),
        "experts": tables.experts(contents),
        "windows": tables.windows(contents),
        "parts": tables.parts(contents),
        "hottest_experts": tables.hottest(contents, _TOP_EXPERTS),
        "migration": tables.migration(contents),
        "redundancy": tables.redundancy(details.redundancy),
        "pairs": tables.pairs(details.coactivations, _TOP_PAIRS),
        "pair_locality": tables.pair_locality(contents, details.coactivations),
    }
    return {name: table for name, table in found.items() if len(table)}


def csv_bytes(table: "pd.DataFrame") -> bytes:
    """A table as CSV. Texts that a spreadsheet would run as formulas begin with an apostrophe."""
    texts = {
        name: table[name].map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell)
        for name in table.columns
        if table[name].dtype.kind not in "biuf"
    }
    return table.assign(**texts).to_csv(index=False).encode(errors="backslashreplace")


def _check_extra() -> None:
    """Raise MissingExtraError before anything is computed or written."""
    try:
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401  # imported only to check that they are installed
    except ImportError as error:
        raise MissingExtraError("a report", "report") from error


@contextmanager
def _naming_incomplete(folder: Path) -> Iterator[None]:
    """Say that the folder is incomplete if a file cannot be written."""
    before = set(folder.iterdir())
    try:
        yield
    except (InputError, OSError) as error:
        if before == set(folder.iterdir()):
            raise
        raise IncompleteOutputError(f"the report in {folder} is incomplete, it has no {PAGE}: {error}") from error


def _make(folder: Path) -> None:
    url = url_of(folder)
    if url is not None:
        raise InputError(f"{url}: a report folder is written on this machine: expected its path, or a page .html")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror or error}") from error
