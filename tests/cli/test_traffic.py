"""`eplb plan --strategy traffic` and `eplb evaluate --traffic`: what is printed is what the library computes."""

import json

import numpy as np
import pytest

import eplb
from eplb.evaluation.link_traffic import Activation, Transfer, link_traffic
from eplb.evaluation.traffic import covering_traffic, expected_traffic
from eplb.formats import read_plan
from eplb.planning.traffic_front import LOAD_CAPS
from eplb_traces import write_trace
from tests.strategies.traffic.test_traffic import clustered_trace

TOPOLOGY = ("--ranks", 16, "--nodes", 4, "--redundant", 16)


@pytest.fixture
def trace_path(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.parquet"
    write_trace(clustered_trace(), path)
    return path


def test_plan_for_a_trace_under_a_cap(run, trace_path, tmp_path):
    out = tmp_path / "plan.json"
    words = ("--strategy", "traffic", "--trace", trace_path, "--load-cap", 1.2, "-o", out)
    result = run("plan", trace_path, *TOPOLOGY, *words)
    assert result.exit_code == 0, result.stderr
    assert "held-out requests (every 5th), this plan against greedy: 1.000 nodes a token" in result.stdout
    trace = eplb.read_trace(trace_path)
    expected = eplb.plan(trace.load(), eplb.Topology(4, 4, 3), "traffic", trace=trace, load_cap=1.2)
    assert read_plan(out).placement == expected.placement


def test_evaluate_gives_the_copies_and_bytes_of_every_way_to_send(run, trace_path, tmp_path):
    out = tmp_path / "plan.json"
    assert run("plan", trace_path, *TOPOLOGY, "--strategy", "greedy", "-o", out).exit_code == 0
    words = ("--trace", trace_path, "--traffic", "--hidden-size", 7168, "--activation", "fp8")
    found = json.loads(run("evaluate", out, trace_path, *words, "--json").stdout)["traffic"]
    placement, trace = read_plan(out).placement, eplb.read_trace(trace_path)
    for shown, traffic in zip(
        found, (expected_traffic(placement, trace), covering_traffic(placement, trace)), strict=True
    ):
        assert shown["replicas_by"] == traffic.rule
        assert shown["sources"] == "uniform"
        np.testing.assert_allclose(shown["rank_matrix"], traffic.rank_matrix)
        np.testing.assert_allclose(shown["node_matrix"], traffic.node_matrix)
        for transfer in Transfer:
            links = link_traffic(traffic, transfer)
            assert shown["dispatch"][transfer] == links.summary(Activation.FP8.token_bytes(7168))
            assert shown["combine"][transfer] == links.reversed.summary(Activation.FP8.token_bytes(7168))
    result = run("evaluate", out, trace_path, *words)
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("even ", "min_cover "))]
    assert [row[1] for row in rows] == [str(transfer) for transfer in Transfer] * 2
    assert max(map(len, result.stdout.splitlines())) <= 80
    forwarded = link_traffic(expected_traffic(placement, trace), Transfer.FORWARDED)
    assert float(rows[2][2]) == pytest.approx(forwarded.between_nodes.sum() / forwarded.num_token_layers, abs=1e-4)


def test_the_front_is_printed_and_drawn(run, trace_path, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "front.png"
    words = ("plan", trace_path, *TOPOLOGY, "--strategy", "traffic", "--trace", trace_path, "--pareto")
    found = json.loads(run(*words, "-o", out, "--json").stdout)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [point["load_cap"] for point in found["points"]] == [None, *LOAD_CAPS]
    nodes = [point["nodes_per_token"] for point in found["points"]]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[-1] == 1 < nodes[0]
    shown = run(*words).stdout.splitlines()
    (row,) = [line.split() for line in shown if line.startswith("1.5 ")]
    assert float(row[5]) == pytest.approx(found["points"][-1]["held_out"]["nodes_per_token"], abs=1e-4)
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "TRACE", *TOPOLOGY, "--load-cap", 1.1), "needs --strategy traffic"),
        (("plan", "TRACE", *TOPOLOGY, "--strategy", "greedy", "--trace", "TRACE"), "needs --strategy traffic"),
        (("plan", "TRACE", *TOPOLOGY, "--strategy", "traffic"), "expected a token-level trace"),
        (("plan", "TRACE", *TOPOLOGY, "--pareto"), "needs --strategy traffic"),
        (("plan", "TRACE", *TOPOLOGY, "--strategy", "traffic", "--pareto"), "needs --trace"),
        (
            ("plan", "TRACE", *TOPOLOGY, "--strategy", "traffic", "--trace", "TRACE", "--pareto", "--load-cap", 1.1),
            "cannot be chosen with --pareto",
        ),
        (("evaluate", "PLAN", "TRACE", "--traffic"), "needs --trace"),
        (("evaluate", "PLAN", "TRACE", "--trace", "TRACE", "--hidden-size", 8), "needs --traffic"),
        (("evaluate", "PLAN", "TRACE", "--trace", "TRACE", "--traffic", "--activation", "fp8"), "needs --hidden-size"),
        (
            (*("evaluate", "PLAN", "TRACE", "--trace", "TRACE", "--traffic"), "--hidden-size", 8, "--activation", "f"),
            "Expected one of fp8, bf16, fp32",
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(run, trace_path, tmp_path, words, message):
    plan_path = tmp_path / "plan.json"
    assert run("plan", trace_path, *TOPOLOGY, "--strategy", "linear", "-o", plan_path).exit_code == 0
    paths = {"TRACE": trace_path, "PLAN": plan_path}
    result = run(*(paths.get(word, word) for word in words))
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
