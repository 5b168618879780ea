"""Builds the command that installs what a feature needs into the environment that runs eplb, however that was made."""

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

_OF_EXTRA = re.compile(r"(?P<requirement>[^;]+?)\s*;\s*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


def install_command(extra: str) -> str:
    """The command for an extra, and where torch is among its packages also the one without CUDA.

    It names the packages and the interpreter: the name of eplb would ask a package index for eplb itself, which fails
    for a checkout, and the `pip` of the shell may belong to another environment. `uv` is named where the environment
    has no pip, as those of `uv tool install`.
    """
    packages = _requirements(extra)
    python, names = shlex.quote(sys.executable), " ".join(map(shlex.quote, packages))
    has_pip = find_spec("pip") is not None
    command = f"{python} -m pip install {names}" if has_pip else f"uv pip install --python {python} {names}"
    if not any(package.startswith("torch") for package in packages):
        return command
    return f"{command} (without CUDA: uv pip install --python {python} --torch-backend cpu {names})"


def _requirements(extra: str) -> list[str]:
    """What the installed metadata lists under an extra; the extra itself where eplb runs without being installed."""
    try:
        listed = requires("eplb") or []
    except PackageNotFoundError:
        listed = []
    found = [match for match in map(_OF_EXTRA.fullmatch, listed) if match and match["extra"] == extra]
    return [match["requirement"] for match in found] or [f"eplb[{extra}]"]
