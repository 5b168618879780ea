import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from eplb_traces import jit


def half(x: float) -> float:
    return x / 2


def test_every_signature_is_compiled_and_the_python_function_stays():
    doubled = jit.njit("float64(float64)", "int64(int64)")(lambda x: x + x)
    assert doubled(1.5) == 3.0
    assert isinstance(doubled(2), int)
    assert doubled.py_func(4) == 8
    with pytest.raises(TypeError, match="No matching definition"):
        doubled("text")


def test_read_only_arrays_fit_where_the_signature_says_so():
    total = jit.njit("float64(Array(float64, 1, 'C', readonly=True))")(lambda array: array.sum())
    array = np.ones(3)
    assert total(array) == 3
    array.setflags(write=False)
    assert total(array) == 3


def test_no_signature_is_an_error():
    with pytest.raises(ValueError, match="expected at least one"):
        jit.njit()


def test_without_a_place_for_the_cache_it_compiles_all_the_same_and_says_so_once(caplog):
    jit._announce_compilation.cache_clear()
    namespace = {}
    exec("def third(x):\n    return x / 3", namespace)  # numba finds no file and so no place for a cache
    with caplog.at_level(logging.INFO, logger="eplb"):
        assert jit.njit("float64(float64)")(namespace["third"])(3.0) == 1.0
        assert jit.njit("float32(float32)")(namespace["third"])(3.0) == 1.0
    assert [record.message for record in caplog.records] == [
        "compiling kernels (once for this installation, up to a minute)"
    ]


def test_a_cached_kernel_is_loaded_in_silence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    jit.njit("float64(float64)")(half)
    assert list(tmp_path.rglob("*.nbi"))
    jit._announce_compilation.cache_clear()
    with caplog.at_level(logging.INFO, logger="eplb"):
        assert jit.njit("float64(float64)")(half)(3.0) == 1.5
    assert not caplog.records


def test_other_runtime_errors_are_not_taken_for_a_missing_cache(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("out of registers")

    monkeypatch.setattr("numba.njit", fail)
    with pytest.raises(RuntimeError, match="out of registers"):
        jit.njit("float64(float64)")(half)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'numba', 'pyarrow', 'pandas', 'torch', 'scipy'}"
    code = f"import sys, eplb_traces, eplb_traces.samples; sys.exit(str({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stderr.strip() == "set()"


HELPER = "from eplb_traces.jit import helper\n\n@helper\ndef more(x):\n    return x + {}\n"
CALLER = """
from eplb_traces.jit import njit
from little.helper_kernel import more

@njit("float64(float64)")
def twice(x):
    return 2 * more(x)
"""
SCRIPT = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from little.kernel import twice
print(twice(1.0))
"""


def run_little_package(folder):
    """Result of the caller in a new process, and whether it was compiled there."""
    environment = {"PYTHONPATH": ":".join([str(folder), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout), "compiling kernels" in done.stderr


def test_an_edited_helper_of_another_file_recompiles_its_caller_and_an_unchanged_one_does_not(tmp_path):
    # This pins the private attribute of numba's cache that holds the stamp of the source.
    package = tmp_path / "little"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernel.py").write_text(CALLER)
    (package / "helper_kernel.py").write_text(HELPER.format("1.0"))
    assert run_little_package(tmp_path) == (4.0, True)
    assert run_little_package(tmp_path) == (4.0, False)
    (package / "helper_kernel.py").write_text(HELPER.format("2.0"))
    assert run_little_package(tmp_path) == (6.0, True)


SUMS = """
from eplb_traces.jit import helper

def sum_of(factor):
    @helper
    def added(n):  # it calls itself twice, so that it is not compiled into its caller
        return factor * n if n < 2 else added(n - 1) + added(n - 2)

    return added
"""
SUM = """
from eplb_traces.jit import njit
from little.sums import sum_of

added = sum_of({})

@njit("float64(int64)")
def total(n):
    return added(n)
"""
BOTH = "from little import by_two_kernel, by_three_kernel; print(by_two_kernel.total(10), by_three_kernel.total(10))"


def test_kernels_that_two_processes_have_cached_do_not_call_each_others_functions(tmp_path):
    # Two functions of one name, as numba's quicksort of values and of indices.
    package = tmp_path / "little"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sums.py").write_text(SUMS)
    (package / "by_two_kernel.py").write_text(SUM.format(2.0))
    (package / "by_three_kernel.py").write_text(SUM.format(3.0))
    environment = {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
    for script in ("import little.by_two_kernel", "import little.by_three_kernel", BOTH):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
    assert done.stdout.split() == ["110.0", "165.0"]


def test_a_work_clock_leaves_out_what_kernels_take_to_be_prepared():
    clock, start = jit.WorkClock(), time.perf_counter()
    jit.njit("float64(float64)")(lambda x: x * 3)
    assert 0 <= clock.seconds() < 0.1 * (time.perf_counter() - start)
