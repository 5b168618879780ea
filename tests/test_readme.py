"""README.md is run: its marked console blocks as typed, its Python blocks in order, its tables against the code."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eplb.formats import FORMATS
from eplb.strategies import STRATEGIES

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
CONSOLE_BLOCKS = re.findall(r"^<!-- executed -->\n```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that looks like the checkout to the commands: the samples are there, and `eplb` is on the PATH."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "traces").symlink_to(REPOSITORY / "traces")
    script = folder / "bin" / "eplb"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom eplb_cli.main import main\nmain()\n")
    script.chmod(0o755)
    return folder


def _commands(block: str) -> list[tuple[str, str]]:
    """Each command of a block with the output that stands below it."""
    return [tuple(part.partition("\n")[::2]) for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


def _run(command: str, folder: Path) -> str:
    environment = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C.UTF-8",
    }
    result = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def _matches(shown: str, found: str) -> bool:
    """Whether the output is what README shows; `...` there stands for anything, white space does not count."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, found, flags)


def test_the_walk_prints_what_readme_shows(folder):
    assert len(CONSOLE_BLOCKS) >= 4
    for block in CONSOLE_BLOCKS:
        for command, shown in _commands(block):
            found = _run(command, folder)
            assert _matches(shown, found), f"$ {command}\nREADME shows:\n{shown}\nbut it prints:\n{found}"


def test_the_python_blocks_run_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(PYTHON_BLOCKS) >= 3
    for number, block in enumerate(PYTHON_BLOCKS):
        exec(compile(block, f"README.md, Python block {number}", "exec"), {})


def test_a_wrong_output_would_be_noticed():
    assert _matches("ranks 8\n...\nend\n", "ranks  8\nmuch\nmore\nend\n")
    assert not _matches("ranks 8\n", "ranks 9\n")


def _table_names(heading: str) -> list[str]:
    """The names in back quotes that begin the rows of the table with this first heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    return re.findall(r"^\| `(\w+)`", table, re.MULTILINE)


def test_the_tables_are_complete():
    assert _table_names("format") == list(FORMATS)
    assert _table_names("name") == list(STRATEGIES)


def test_every_command_is_named():
    from eplb_cli.main import app

    commands = [of.name for of in app.registered_commands] + [of.name for of in app.registered_groups]
    assert [name for name in commands if f"`eplb {name}" not in README and f"$ eplb {name}" not in README] == []


def test_every_make_target_is_there():
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)\b", README)) - {"s", "and"}
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {name for name in named if "-" in name or name in {"demo", "test", "check", "bench"}} <= targets


def test_every_link_into_the_repository_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (REPOSITORY / target).exists()] == []
