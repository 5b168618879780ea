"""Equal inputs and seeds give equal bytes: on any number of threads, in any process, on any processor of one kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eplb.core import layer_threads
from tests.reproducible import plans

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans.json"


def numpy_dispatch():
    """The vector instructions beyond its baseline that numpy uses here."""
    from numpy._core import _multiarray_umath as umath

    return [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]


def in_another_process(**environment):
    command = [sys.executable, "-W", "ignore", "-m", "tests.reproducible.plans", "all"]
    search = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": search, **environment}
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_golden_plans_on_any_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(layer_threads, "usable_cores", lambda: threads)
    made, golden = plans.plans(), json.loads(GOLDEN.read_text())
    assert made.keys() == golden.keys()
    for name, lines in golden.items():
        assert made[name] == lines, name


def test_another_process_without_the_vector_instructions_of_this_processor_gives_the_same():
    found = in_another_process(
        NPY_DISABLE_CPU_FEATURES=" ".join(numpy_dispatch()), OPENBLAS_CORETYPE="Nehalem", PYTHONHASHSEED="7"
    )
    assert found == {**plans.plans(), "synthetic": plans.synthetic()}


@pytest.mark.skipif("EPLB_LONG_TESTS" not in os.environ, reason="EPLB_LONG_TESTS=1: every kernel is compiled anew")
def test_a_fresh_cache_with_code_for_any_processor_gives_the_same(tmp_path):
    found = in_another_process(NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert found == {**plans.plans(), "synthetic": plans.synthetic()}
    assert any(tmp_path.rglob("*.nbc"))


def test_a_difference_of_the_last_bit_is_seen():
    import dataclasses
    import math

    import eplb

    plan = eplb.plan(plans.load(), plans.TOPOLOGY, "greedy")
    claim = dataclasses.replace(plan.layers[1], objective=math.nextafter(plan.layers[1].objective, math.inf))
    other = dataclasses.replace(plan, layers=(plan.layers[0], claim, plan.layers[2]))
    assert plans.text_of(other) != plans.text_of(plan)
