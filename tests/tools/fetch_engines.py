"""Puts the serving engines' own code into `.engines/`, for the tests in tests/real_engines: `make engines`.

Wheels are unpacked without their dependencies; vLLM, whose wheel holds gigabytes of CUDA code, is built from its source
package for no device at all. Nothing is installed into the environment that runs this. What is complete is left alone.
"""

import logging
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

TARGET = Path(__file__).resolve().parents[2] / ".engines"
STAMP = "complete.txt"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")

# What the engines' EPLB modules import besides numpy, torch, pydantic and transformers: pure Python or a small wheel.
LIGHT = (
    "aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 attrs==26.1.0 cachetools==8.0.1 cbor2==6.3.0 "
    "certifi==2026.10.18 charset_normalizer==3.5.2 cloudpickle==3.1.2 einops==0.8.2 frozenlist==1.8.0 idna==3.20 "
    "msgspec==0.22.0 multidict==7.2.1 orjson==3.13.0 propcache==0.5.4 psutil==7.2.2 py-cpuinfo==9.0.0 "
    "pybase64==1.5.1 pyzmq==27.3.0 requests==2.34.2 six==1.17.0 starlette==1.10.0 urllib3==2.8.0 yarl==1.25.1"
)
BUILD = "jinja2 packaging setuptools setuptools_rust setuptools_scm wheel"
VLLM = "vllm==0.32.0"
VLLM_BUILD = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VLLM.split("==")[1]}
VLLM_TESTS = ("tests/distributed/test_eplb_algo.py",)

logger = logging.getLogger("fetch_engines")


@final
@dataclass(frozen=True)
class Unpacked:
    """Wheels, put into a folder as they are."""

    folder: str
    requirements: tuple[str, ...]

    def fetch(self, folder: Path) -> None:
        """Install into `folder`, without what the wheels depend on."""
        flags = ("--no-deps", "--no-compile", "--only-binary", ":all:")
        _pip("install", *flags, "--target", str(folder), *self.requirements)


@final
@dataclass(frozen=True)
class Vllm:
    """vLLM and the tests of its source package."""

    folder: str = "vllm"
    requirements: tuple[str, ...] = (VLLM, *VLLM_TESTS)

    def fetch(self, folder: Path) -> None:
        """Build into `folder`; the tools of the build live in a folder of their own and go with it."""
        tools, source = folder.with_name("build-tools"), folder.with_name("source")
        try:
            _pip("install", "--no-compile", "--target", str(tools), *BUILD.split())
            environment = {**os.environ, **VLLM_BUILD, "PYTHONPATH": str(tools)}
            flags = ("--no-deps", "--no-build-isolation")
            _pip("download", *flags, "--no-binary", "vllm", "--dest", str(source), VLLM, environment=environment)
            (archive,) = source.glob("*.tar.gz")
            _pip("install", *flags, "--no-compile", "--target", str(folder), str(archive), environment=environment)
            _extract_tests(archive, folder / "own_tests")
        finally:
            shutil.rmtree(tools, ignore_errors=True)
            shutil.rmtree(source, ignore_errors=True)


ENGINES = (
    Unpacked("light", tuple(LIGHT.split())),
    Unpacked("sglang", ("sglang==0.5.23",)),
    Unpacked("vllm_ascend", ("vllm-ascend==0.23.0",)),
    Unpacked("dlblas", ("dlblas==0.0.7",)),
    Vllm(),
)


def main() -> int:
    """Fetch what is missing; the number of engines that could not be had."""
    TARGET.mkdir(exist_ok=True)
    (TARGET / ".gitignore").write_text("*\n")
    return sum(not _fetch(engine) for engine in ENGINES)


def _fetch(engine: Unpacked | Vllm) -> bool:
    """Fetch into a folder beside the final one and rename, so that a folder is whole or not there."""
    folder, wanted = TARGET / engine.folder, "\n".join(engine.requirements)
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return True
    logger.info("fetching %s", engine.folder)
    unfinished = TARGET / f"{engine.folder}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        engine.fetch(unfinished)
    except subprocess.CalledProcessError as error:
        logger.error("%s cannot be had here; its tests will be skipped:\n%s", engine.folder, error.stderr[-2000:])
        return False
    (unfinished / STAMP).write_text(wanted)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return True


def _pip(*words: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run([*PIP, *words], check=True, env=environment, capture_output=True, text=True)


def _extract_tests(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as source:
        top = source.next().name.split("/")[0]
        for name in VLLM_TESTS:
            (folder / Path(name).name).write_bytes(source.extractfile(f"{top}/{name}").read())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(1 if main() else 0)
