"""What the wheel holds, and that it works from where an installer would put it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("eplb", "eplb_cli", "eplb_traces")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The folder that plays site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_three_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(top) == len(PACKAGES) + 1


def test_the_wheel_holds_types_samples_and_licence_and_no_leftovers(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
    assert {"eplb_traces/samples/moe-435m.parquet", "eplb_traces/samples/README.md"} <= files
    assert {"eplb/report/page/page.html", "eplb/report/page/page.css"} <= files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    assert not {name for name in files if "__pycache__" in name or name.endswith((".nbi", ".nbc", ".pyc"))}


def test_every_module_is_in_the_wheel(installed):
    for package, source in zip(PACKAGES, ("eplb", "cli/eplb_cli", "traces/eplb_traces"), strict=True):
        expected = {path.relative_to(REPOSITORY / source).as_posix() for path in (REPOSITORY / source).rglob("*.py")}
        found = {path.relative_to(installed / package).as_posix() for path in (installed / package).rglob("*.py")}
        assert found == expected


def test_the_installed_packages_import_and_the_script_runs(installed):
    (info,) = installed.glob("*.dist-info")
    assert "eplb = eplb_cli.__main__:main" in (info / "entry_points.txt").read_text()
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import eplb, eplb_traces, eplb_cli.__main__; "
        "print(*(p.__file__ for p in (eplb, eplb_traces, eplb_cli)), sep='\\n'); "
        "sys.argv = ['eplb', '--version']; eplb_cli.__main__.main()"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=installed.parent
    )
    *files, version = result.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert version == f"eplb {info.name.removesuffix('.dist-info').removeprefix('eplb-')}"
