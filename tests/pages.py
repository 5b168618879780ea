"""Finds and runs the blocks of a page of the manual: console blocks as typed, Python blocks, files that it shows."""

import contextlib
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.walk import run

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(
    r"^<!-- executed -->\n```console\n(?P<console>.*?)^```$"
    r"|^```python\n(?P<python>.*?)^```$"
    r"|^<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<file>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One block that is run."""

    kind: str
    """console, python or file."""
    text: str
    name: str
    """Of the file; else the place of the block on its page."""


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page that are run, in order."""
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start()) + 1
        kind = next(kind for kind in ("console", "python", "file") if match[kind] is not None)
        yield Block(kind, match[kind], match["name"] or f"line {line}")


def run_page(page: Path, folder: Path) -> int:
    """Run the blocks of a page in a folder that has the samples; returns their number."""
    (folder / "traces").symlink_to(REPOSITORY / "traces")
    names: dict[str, object] = {"__name__": page.stem}
    found = list(blocks(page.read_text()))
    for block in found:
        if block.kind == "file":
            (folder / block.name).write_text(block.text)
        elif block.kind == "python":
            with contextlib.chdir(folder):
                exec(compile(block.text, f"{page.name}, {block.name}", "exec"), names)
        else:
            _run_console(block, folder, page.name)
    return len(found)


def _run_console(block: Block, folder: Path, page: str) -> None:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        found = run(command, folder)
        assert matches(shown, found), f"{page}, {block.name}: $ {command}\nshown:\n{shown}\nprinted:\n{found}"


def matches(shown: str, found: str) -> bool:
    """Whether an output is what a page shows; `...` stands for anything, white space does not count."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, found, flags)
