"""Runs the recorder's tests on the lowest allowed and on the newest transformers: `make test-recorder`.

Each version has an environment of its own in `.venv-recorder/`, behind which lie the packages of the environment that
runs this. Without the package registry nothing is run and the exit code is 0, because the newest release is unknown.
"""

import logging
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-recorder"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
TESTS = "tests/traces/recorder"

logger = logging.getLogger("recorder_versions")


def lowest_allowed() -> str:
    """Return the lower bound of the extra `record`, as a requirement."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [re.fullmatch(r"(transformers)>=([0-9.]+)", requirement) for requirement in extras["record"]]
    (bound,) = (match for match in found if match is not None)
    return f"{bound[1]}=={bound[2]}"


def environment(name: str, requirement: str) -> Path:
    """Return the interpreter of an environment with this transformers, created or brought up to date."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    # A path file comes after the environment's own packages.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "behind.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run([*PIP, "--python", python, "install", "--no-compile", "--upgrade", requirement], check=True)
    return python


def main() -> int:
    """Run both; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if subprocess.run([*PIP, "index", "versions", "transformers"], capture_output=True, check=False).returncode:
        logger.info("the package registry cannot be reached: the recorder's tests are not run on other transformers")
        return 0
    running = {}
    for name, requirement in (("lowest", lowest_allowed()), ("newest", "transformers")):
        python = environment(name, requirement)
        show = [python, "-c", "from importlib.metadata import version; print(version('transformers'))"]
        version = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", TESTS]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # both run at once
        running[version] = subprocess.Popen(
            command, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    failed = 0
    for version, process in running.items():
        output = process.communicate()[0].decode(errors="replace")
        logger.info("transformers %s\n%s", version, output.strip())
        failed |= process.returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
