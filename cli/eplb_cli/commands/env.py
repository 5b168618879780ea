"""`eplb env`: versions, extras, processors and variables of this installation, for bug reports."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from eplb_cli import output
from eplb_cli.arguments.options import JsonOpt

_CORE: Final = ("numpy", "scipy", "numba", "pandas", "pyyaml", "typer", "rich")
_VARIABLES: Final = ("EPLB_", "NUMBA_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_REQUIREMENT: Final = re.compile(r"""([\w.-]+)[^;]*;.*extra == ["']([\w-]+)["']""")


def env(as_json: JsonOpt = False) -> None:
    """Show versions, installed extras, CPU and GPUs, to be added to a bug report."""
    packages = {name: _version(name) for name in ("eplb", *_CORE)}
    extras = {name: {one: _version(one) for one in needed} for name, needed in _extras().items()}
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
    }
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    if as_json:
        output.json_object({"packages": packages, "extras": extras, **found, "variables": variables})
        return
    output.facts("eplb env", [(name, str(value)) for name, value in found.items()])
    output.facts("packages", [(name, version or "not installed") for name, version in packages.items()])
    if extras:
        output.facts("extras", [(name, _extra_text(needed)) for name, needed in extras.items()])
    if variables:
        output.facts("variables", list(variables.items()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """{extra: packages that it needs}, by the metadata of the installed package; empty without it."""
    try:
        requirements = metadata.requires("eplb") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for package, extra in filter(None, (_package_of_extra(text) for text in requirements)):
        extras.setdefault(extra, []).append(package)
    return extras


def _package_of_extra(requirement: str) -> tuple[str, str] | None:
    """("ortools", "ilp") of `ortools>=9.12; extra == 'ilp'`; None for one without extra, or of eplb itself."""
    match = _REQUIREMENT.match(requirement)
    return None if match is None or match[1] == "eplb" else (match[1], match[2])


def _extra_text(needed: Mapping[str, str | None]) -> str:
    missing = [name for name, version in needed.items() if version is None]
    if missing:
        return f"no: {', '.join(missing)} not installed"
    return "yes: " + ", ".join(f"{name} {version}" for name, version in needed.items())


def _cpu() -> str:
    """The model of the CPU and the cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{_cpu_model()}, {output.counted(allowed or 1, 'usable core')} of {os.cpu_count()}"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return model[1] if model else platform.machine()


def _gpus() -> str:
    """The GPUs that torch finds; what hinders where it finds none."""
    if _version("torch") is None:
        return "unknown: torch is not installed"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"unknown: torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"none found by torch {torch.__version__}"
    names = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (torch {torch.__version__}, CUDA {torch.version.cuda})"
