"""`--ray`: a cluster of this machine gives what the command gives without it."""

import json
import os

import pytest

from tests.traces.scale.test_ray import cluster
from tests.traces.scale.test_reduce import write_parts

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # ray leaves sockets and processes to the garbage collector
    pytest.mark.skipif(os.environ.get("EPLB_TEST_RAY") != "1", reason="make test-scale starts a Ray cluster"),
]
__all__ = ["cluster"]  # the fixture

_OF_THE_CLOCK = {"seconds", "plan_seconds"}


def without_clock(value):
    if isinstance(value, dict):
        return {name: without_clock(one) for name, one in value.items() if name not in _OF_THE_CLOCK}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--ranks", 4, "--redundant", 4, "--strategies", "linear,greedy,deepseek"),
        ("sweep", "--ranks", 4, "--redundant", "0:16:4"),
    ],
)
def test_cases_on_a_cluster_give_the_same(cluster, run, load_path, words):
    command, *options = words
    local, remote = (run(command, load_path, *options, "--json", *extra) for extra in ((), ("--ray", "local")))
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.stderr
    assert without_clock(json.loads(local.stdout)) == without_clock(json.loads(remote.stdout))


def test_advice_on_a_cluster_is_the_same(cluster, run):
    words = ("advise", "sample:moe-435m-windows", "--model", "moe-435m", "--gpu", "h200", "--nodes", "1:2", "--json")
    local, remote = run(*words), run(*words, "--ray", "local")
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.stderr
    assert without_clock(json.loads(local.stdout)) == without_clock(json.loads(remote.stdout))


def test_a_reduced_trace_is_the_same_file(cluster, run, tmp_path):
    write_parts(tmp_path, (5, 6, 7))
    pattern = str(tmp_path / "part-*.parquet")
    assert run("trace", "reduce", pattern, "-o", tmp_path / "a.npz").exit_code == 0
    assert run("trace", "reduce", pattern, "-o", tmp_path / "b.npz", "--ray", "local").exit_code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
