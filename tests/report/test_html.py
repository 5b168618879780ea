"""The page without a browser: its data, escaping of names, and refused input."""

import json
import re

import numpy as np
import pytest

from eplb import Placement, Topology, plan
from eplb.errors import InputError
from eplb.report.contents import gather
from eplb.report.html import json_in_html, page, write_page
from eplb.report.html_arrays import unpacked
from eplb.report.html_coactivation import factors
from eplb.report.html_payload import payload
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch, synthesize_trace
from eplb_traces.coactivation.layer_coactivation import coactivations
from eplb_traces.coactivation.pair_independence import independent_pairs

SHAPE = ModelShape(3, 16, 4, 4, 2, moe_layer_ids=(1, 2, 3))
TOPOLOGY = Topology(2, 2, 5)
HOSTILE = "</script><script>window.hacked = 1</script><!-- {{payload}} & %{x} \u2028"


@pytest.fixture(scope="module")
def contents():
    return gather(synthesize_trace(shape=SHAPE, num_steps=4, tokens_per_step=256), topology=TOPOLOGY, title="sample")


@pytest.fixture(scope="module")
def found(contents):
    """The payload as the page's scripts read it."""
    return json.loads(json.dumps(payload(contents)))


def _payload_of(text: str) -> dict[str, object]:
    (inside,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', text, re.DOTALL)
    return json.loads(inside)


def test_the_payload_contains_the_whole_plan(contents, found):
    for view, written in zip(contents.plans, found["plans"], strict=True):
        assert written["name"] == view.name
        np.testing.assert_array_equal(unpacked(written["rank_load"]), view.total_rank_load)
        np.testing.assert_array_equal(unpacked(written["max_over_mean"]), view.evaluation.max_over_mean)
        found_map = unpacked(written["physical_to_logical_map"])
        np.testing.assert_array_equal(found_map, view.placement.physical_to_logical_map)
        np.testing.assert_array_equal(unpacked(written["rank_of_slot"]), TOPOLOGY.rank_of_slot)
        np.testing.assert_array_equal(written["bound"], view.bound.value)
        np.testing.assert_allclose(unpacked(written["balance_by_window"]), view.balance_by_window, rtol=1e-6)
    np.testing.assert_array_equal(unpacked(found["load"]), contents.load.total)
    assert len(found["windows"]) == contents.windows.num_windows


def test_metrics_equal_those_of_evaluate_in_all_digits(contents, found):
    for view, written in zip(contents.plans, found["plans"], strict=True):
        assert view.evaluation.summary().items() <= written["metrics"].items()
        assert written["metrics"]["ranks_per_token"] == view.spread.ranks_per_token.mean()
    assert contents.plans[1].migration.summary().items() <= contents.plans[1].metrics().items()
    assert contents.plans[0].migration is None
    assert "moved_copies" not in found["plans"][0]["metrics"]


def test_every_metric_has_a_meaning(contents, found):
    names = {name for plan in found["plans"] for name in plan["metrics"]}
    assert names - found["metric_meanings"].keys() == set()


def test_replicas_moved_into_ranks_sum_to_the_migration(contents, found):
    migration, written = contents.plans[1].migration, found["plans"][1]["migration"]
    moved_in = unpacked(written["moved_in"])
    np.testing.assert_array_equal(moved_in.sum(axis=1), migration.moved_copies_by_layer)
    sent = unpacked(written["link_copies"]).sum(axis=0)  # [R] replicas into each rank, over layers
    np.testing.assert_array_equal(moved_in.sum(axis=0), sent)


def test_coactivation_is_within_the_stated_error(contents, found):
    written = found["coactivation"]
    stated = float(re.search(r"at most ([\d.]+) % off", written["note"])[1]) / 100
    levels, orders = unpacked(written["levels"]), unpacked(written["order"])
    for of_layer in coactivations(contents.trace):
        layer, above = of_layer.layer, np.triu_indices(16, 1)
        expected = of_layer.expected_pairs[above]
        lift = (of_layer.pairs[above] + 5) / (expected + 5)
        exponent = (levels[layer].astype(float) - 1) * written["step"][layer]
        shown = np.where(levels[layer] > 0, written["lowest"][layer] * 2**exponent, 0)
        np.testing.assert_allclose(shown, lift, rtol=stated + 5e-4)  # the sentence rounds to 0.1 %
        factors = unpacked(written["factors"])[layer]
        np.testing.assert_allclose(np.outer(factors, factors)[above], expected, rtol=1e-9)
        np.testing.assert_array_equal(unpacked(written["tokens"])[layer], of_layer.expert_tokens)
        np.testing.assert_array_equal(orders[layer], of_layer.order())
        surplus = of_layer.pairs - of_layer.expected_pairs
        listed = written["top_pairs"][layer]
        assert listed
        assert [of_layer.pairs[i, j] for i, j, *_ in listed] == [count for _, _, count, _ in listed]
        assert [of_layer.adjusted_lift()[i, j] for i, j, *_ in listed] == [lift for *_, lift in listed]
        found = [surplus[i, j] for i, j, *_ in listed]
        assert found[0] == surplus[above].max()
        assert found == sorted(found, reverse=True)


def test_experts_without_affinity_have_the_neutral_lift():
    # Every token chooses 2 of 3 experts, all three pairs equally often: each pair is as frequent as its experts allow.
    choices = np.array([[0, 1], [0, 2], [1, 2]], np.uint16)[:, None]
    written = payload(gather(_trace(choices, 3), topology=Topology(1, 1, 3)))["coactivation"]
    assert unpacked(written["levels"]).tolist() == [[1, 1, 1]]
    assert written["lowest"] == [pytest.approx(1)]
    assert written["top_pairs"] == [[]]


def test_random_routing_over_8_experts_is_neutral_and_lists_no_pair():
    rng = np.random.default_rng(5)
    choices = np.argsort(rng.random((4096, 8)), axis=1)[:, None, :2].astype(np.uint16)
    written = payload(gather(_trace(choices, 8), topology=Topology(1, 2, 4)))["coactivation"]
    levels = unpacked(written["levels"])[0].astype(float)
    shown = written["lowest"][0] * 2 ** ((levels - 1) * written["step"][0])
    assert np.abs(np.log2(shown)).max() < 0.3  # plain lifts are around 1/2, the exponent -1
    assert written["top_pairs"] == [[]]


def test_a_pair_that_chance_does_not_explain_is_listed():
    rng = np.random.default_rng(5)
    choices = np.argsort(rng.random((4096, 8)), axis=1)[:, None, :2].astype(np.uint16)
    choices[:400] = [2, 5]
    (listed,) = payload(gather(_trace(choices, 8), topology=Topology(1, 2, 4)))["coactivation"]["top_pairs"]
    assert listed[0][:2] == (2, 5)


@pytest.mark.parametrize(
    "partners", [[0, 0, 0], [4, 4], [9, 3, 3, 3], [5, 4, 3, 2, 2, 0], [20, 8, 7, 6, 1], [0], [2, 1, 1]]
)
def test_factors_reproduce_the_expected_pairs(partners):
    # [9, 3, 3, 3]: expert 0 is part of every pair; [20, 8, 7, 6, 1]: of more than half of them.
    expected = independent_pairs(np.array(partners))
    found = factors(expected)
    np.testing.assert_allclose(np.outer(found, found)[~np.eye(len(partners), dtype=bool)],
                               expected[~np.eye(len(partners), dtype=bool)], rtol=1e-9, atol=1e-12)  # fmt: skip


def _trace(choices, num_experts):
    shape = ModelShape(choices.shape[1], num_experts, choices.shape[2])
    index = np.arange(len(choices))
    return RoutingTrace(shape, [TokenBatch(shape, choices, np.zeros_like(index), index)])


def test_a_load_without_trace_has_no_coactivation_and_one_window_no_balance_over_time():
    found = payload(gather(ExpertLoad(np.ones((2, 8))), topology=Topology(1, 4, 2)))
    assert found["coactivation"] is None
    assert found["windows"] is None
    assert all(plan["balance_by_window"] is None for plan in found["plans"])


def test_the_first_layer_shown_is_the_worst_one():
    load = np.ones((3, 4))
    load[1, 0] = 5  # alone on its rank: 5 / 2 of the mean, the other layers are even
    assert payload(gather(ExpertLoad(load), topology=Topology(1, 4, 1)))["first_layer"] == 1


def test_the_first_layer_shown_is_the_worst_one_of_the_summary():
    # Window by window layer 1 has 2 / 1 of the mean; summed it is even, and layer 0 has 3 / 1.75.
    windows = np.array([[[3, 2, 1, 1], [2, 2, 0, 0]], [[3, 2, 1, 1], [0, 0, 2, 2]]], dtype=float)
    contents = gather(ExpertLoad(windows), topology=Topology(1, 4, 1))
    of_sum = contents.plans[0].evaluation.max_over_mean_of_total
    assert of_sum[0] > of_sum[1]
    assert payload(contents)["first_layer"] == 1
    assert "in window 0, layer 1;" in contents.summary_text[0].splitlines()[1]


@pytest.mark.parametrize(
    ("load", "topology"),
    [
        (np.array([[0.0, 0, 0, 0], [4, 3, 2, 1]]), Topology(1, 2, 2)),  # a layer without load
        (np.array([[5.0, 2, 1, 1]]), Topology(1, 2, 3)),  # one layer
        (np.array([[3.0]]), Topology(1, 1, 1)),  # one expert
        (np.arange(1024.0).reshape(2, 512), Topology(2, 8, 33)),  # 512 experts
        (np.array([[5.0, 2, 1, 1]]), Topology(1, 2, 3, rank_speed=(1.0, 2.0))),
    ],
)
def test_unusual_loads_give_valid_json(load, topology):
    contents = gather(ExpertLoad(load), topology=topology)
    found = json.loads(json_in_html(payload(contents)))
    np.testing.assert_array_equal(unpacked(found["load"]), load)


def test_one_expert_with_tokens_has_no_pairs():
    found = payload(gather(_trace(np.zeros((5, 2, 1), np.uint16), 1), topology=Topology(1, 1, 1)))
    assert unpacked(found["coactivation"]["levels"]).shape == (2, 0)
    assert found["coactivation"]["top_pairs"] == [[], []]


def test_a_plan_for_another_model_is_refused_by_name():
    other = plan(ExpertLoad(np.ones((3, 8))), Topology(1, 4, 2), "greedy").placement
    with pytest.raises(InputError, match=r"load of 3 layers x 16 .*plan other is for 3 layers x 8 experts"):
        gather(synthesize_trace(shape=SHAPE, num_steps=1, tokens_per_step=8), {"other": other})


def test_names_from_files_cannot_end_the_script_they_stand_in(contents):
    hostile = gather(contents.load, {HOSTILE: contents.plans[1].placement}, title=HOSTILE)
    text = page(hostile)
    assert HOSTILE not in text
    assert "<script>window.hacked" not in text
    found = _payload_of(text)
    assert found["title"] == HOSTILE
    assert found["plans"][1]["name"] == HOSTILE


def test_json_in_html_is_the_same_json():
    value = {"a": [HOSTILE, 1.5, None]}
    assert json.loads(json_in_html(value)) == value
    assert not set("<>&") & set(json_in_html(value))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_in_html({"a": float("nan")})


def test_equal_contents_make_equal_files(tmp_path, contents):
    again = gather(synthesize_trace(shape=SHAPE, num_steps=4, tokens_per_step=256), topology=TOPOLOGY, title="sample")
    write_page(contents, tmp_path / "a.html")
    write_page(again, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_names_its_inputs_and_versions(contents):
    below = dict(_payload_of(page(contents))["provenance"])
    assert contents.load.digest in below["load"]
    assert "4 ranks on 2 nodes, slots of a rank: 5; evaluated under even dispatch" in below[contents.plans[1].name]


def test_the_file_is_self_contained_and_forbids_requests(contents):
    text = page(contents)
    assert re.findall(r"<(?:link|iframe|img|script[^>]* src)", text.partition("<script>\n")[0]) == []
    assert "default-src 'none'" in text
    assert not re.search(r"\{\{(title|style|plotly|tables|script|payload)\}\}", text)


def test_a_folder_that_is_not_there_is_named(contents, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_page(contents, tmp_path / "no" / "a.html")


def test_duplicate_experts_and_empty_slots_are_kept():
    topology = Topology(1, 2, 2)
    placement = Placement(np.array([[0, 0, 1, -1]]), 2, topology)
    found = payload(gather(ExpertLoad(np.array([[2.0, 1.0]])), {"odd": placement}))
    assert unpacked(found["plans"][1]["physical_to_logical_map"]).tolist() == [[0, 0, 1, -1]]
    assert found["plans"][1]["metrics"]["duplicate_slots"] == 1
