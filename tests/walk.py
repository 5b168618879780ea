"""Runs one command line of the manual and returns what it prints."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path


def bare_environment() -> dict[str, str]:
    """The variables that a process of this checkout needs, and the cache of kernels that the tests run on."""
    given = {name: os.environ[name] for name in ("NUMBA_CACHE_DIR",) if name in os.environ}
    return given | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": "/"}


def run(command: str, folder: Path) -> str:
    """The standard output of `command`, run in `folder`.

    A plain `eplb` command runs in this process. A command with pipes, redirections or variables goes to the shell,
    which finds an `eplb` of this checkout on its PATH.
    """
    words = shlex.split(command)
    is_plain = words[0] == "eplb" and not re.search(r"[|&;<>$`]", command)
    return _in_process(words[1:], folder) if is_plain else _in_shell(command, folder)


def _in_process(words: list[str], folder: Path) -> str:
    from eplb_cli.main import app

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()  # with an encoding, as a terminal has one
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app(words, prog_name="eplb", standalone_mode=False)
    assert not code, f"$ eplb {shlex.join(words)}\nexit code {code}\n{err.getvalue()}"
    out.seek(0)
    return out.read()


def _in_shell(command: str, folder: Path) -> str:
    script = folder / "bin" / "eplb"
    if not script.exists():
        script.parent.mkdir()
        script.write_text(f"#!{sys.executable}\nfrom eplb_cli.__main__ import main\nmain()\n")
        script.chmod(0o755)
    environment = bare_environment() | {
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C.UTF-8",
    }
    result = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"$ {command}\nexit code {result.returncode}\n{result.stderr}"
    return result.stdout
