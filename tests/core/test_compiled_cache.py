"""The cache of compiled kernels: which files it is of, where it is, and that everything is compiled into it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import eplb
import eplb_traces
from eplb.core.compiled_cache import cached_files, kernel_modules

_PYTHON_PATH = os.pathsep.join(path for path in sys.path if path)


def test_every_kernel_file_is_compiled_but_those_for_gpus():
    found = set(kernel_modules())
    for package in (eplb, eplb_traces):
        folder = Path(package.__file__).parent
        files = {file.relative_to(folder) for file in folder.rglob("*kernel*.py")}
        expected = {".".join((package.__name__, *file.with_suffix("").parts)) for file in files}
        assert {name for name in expected if ".runtime." not in name} == {
            name for name in found if name.startswith(f"{package.__name__}.")
        }


def test_the_folders_are_those_in_which_numba_keeps_the_machine_code():
    from eplb.dispatch import optimal_shares_kernel as module

    (found,) = [file for file in cached_files() if file.module == module.__name__]
    kernels = [value for value in vars(module).values() if hasattr(value, "_cache") and value.signatures]
    assert kernels
    assert {Path(kernel._cache.cache_path) for kernel in kernels} == {found.folder}
    assert found.num_cached >= len(kernels)


def test_numba_cache_dir_is_where_the_command_says(tmp_path):
    environment = {**os.environ, "PYTHONPATH": _PYTHON_PATH, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-m", "eplb_cli", "cache", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    folders = json.loads(found.stdout)["folders"]
    assert folders
    assert all(Path(folder).parent == tmp_path for folder in folders)
    assert json.loads(found.stdout)["num_kernels"] == 0
