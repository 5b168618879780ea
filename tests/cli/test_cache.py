"""`eplb cache`: the folders, and every kernel compiled."""

import json

from eplb.core.compiled_cache import cached_files, kernel_modules


def test_build_compiles_every_file_and_says_where(run):
    result = run("cache", "build", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["num_files"] == len(kernel_modules())
    assert found["num_kernels"] == sum(file.num_cached for file in cached_files()) > found["num_files"]


def test_the_folders_are_shown(run):
    result = run("cache")
    assert result.exit_code == 0, result.stderr
    assert all(str(file.folder) in result.stdout for file in cached_files())
    assert "NUMBA_CACHE_DIR" in result.stdout
