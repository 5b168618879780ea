"""Predicted milliseconds in a report: metrics, tables, picture and chart of the page; none without a calibration."""

import json

import numpy as np
import pytest

from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import named_calibration, predict
from eplb.cost.model_presets import ModelSizes
from eplb.evaluation.step_cost import StepCost
from eplb.report import gather, pictures, tables, write_page
from eplb.report.figures import layer_details, report_figures
from eplb.report.html_arrays import unpacked
from eplb.report.html_payload import payload
from tests.report.examples import SHAPE, TOPOLOGY, contents_of_trace, some_trace

MODEL = ModelSizes(
    name="small", hidden_size=512, intermediate_size=128, num_moe_layers=6, num_dense_layers=1, num_experts=16,
    top_k=4, num_expert_groups=1, top_k_groups=1, num_shared_experts=0, dtype="bf16",
)  # fmt: skip
COST = StepCost(model=MODEL, calibration=named_calibration("h100"), tokens_per_rank=32)
PARTS = ("dispatch", "ffn", "waiting", "combine")


@pytest.fixture(scope="module")
def contents():
    return gather(some_trace(), topology=TOPOLOGY, title="trace.parquet", cost=COST)


def test_a_report_predicts_every_plan_on_the_same_choices(contents):
    batch = COST.batch(some_trace(), TOPOLOGY)
    for view in contents.plans:
        times = predict(view.placement, batch.choices, MODEL, COST.calibration, rule=DispatchRule.EVEN)
        assert view.metrics()["predicted_step_ms"] == pytest.approx(1e3 * times.step_s.sum() / 3 * 6)
    assert contents.choices == "first 128 tokens of the trace; 6 times the mean recorded layer, of 3"


def test_the_summary_has_the_milliseconds_and_marks_the_formula(contents):
    text = contents.summary_text[0]
    took = contents.plans[1].metrics()["predicted_step_ms"]
    assert f"With greedy the MoE layers of a step take {took:.2f} ms" in text
    assert "predicted for 6 MoE layers of small (bf16) on NVIDIA H100 SXM (formula), 32 tokens a rank" in text
    assert "FORMULA: nobody measured NVIDIA H100 SXM" in text


def test_the_table_of_layers_has_the_parts(contents):
    pytest.importorskip("pandas")
    table = tables.layers(contents)
    parts = sum(table[f"predicted_{part}_ms"] for part in PARTS)
    np.testing.assert_allclose(parts, table["predicted_step_ms"])
    assert not table["predicted_step_ms"].isna().any()
    assert not [name for name in tables.layers(contents_of_trace()) if name.startswith("predicted")]


def test_redundancy_has_a_prediction_for_each_point(contents):
    points = layer_details(contents, ()).redundancy
    assert all(point.predicted_step_s > 0 for point in points)
    pytest.importorskip("pandas")
    assert "predicted_step_s" in tables.redundancy(points)
    assert "predicted_step_s" not in tables.redundancy(layer_details(contents_of_trace(), ()).redundancy)


def test_the_picture_stacks_the_parts_of_each_layer_on_one_scale(contents):
    pytest.importorskip("matplotlib")
    first = pictures.draw_step_times(contents.plans, COST, contents.load.shape)
    assert [label.get_text() for label in first.figure.axes[-1].get_xticklabels()] == ["1", "2", "5"]
    panels = first.figure.axes
    assert len(panels) == 2
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert panels[0].get_ylim()[0] == 0
    assert "(formula)" in first.figure.get_suptitle()
    for axes, view in zip(panels, contents.plans, strict=True):
        milliseconds = view.step.layer_ms()
        for bars, part in zip(axes.containers, PARTS, strict=True):
            np.testing.assert_allclose([bar.get_height() for bar in bars], milliseconds[part])
        tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
        np.testing.assert_allclose(tops, milliseconds["step"])


def test_the_picture_is_there_with_a_calibration_only(contents):
    names = [picture.name for picture in report_figures(contents, layer_details(contents, ()))]
    without = [picture.name for picture in report_figures(contents_of_trace(), layer_details(contents_of_trace(), ()))]
    assert [name for name in names if name not in without] == ["step-time"]


def test_the_payload_has_the_milliseconds_of_each_layer(contents):
    found = json.loads(json.dumps(payload(contents)))
    for view, plan in zip(contents.plans, found["plans"], strict=True):
        assert plan["step"]["layers"] == [0, 1, 2]
        for part, milliseconds in view.step.layer_ms().items():
            np.testing.assert_allclose(unpacked(plan["step"][part]), milliseconds, rtol=1e-6)
    assert "(formula)" in found["about_steps"]
    assert all(plan["step"] is None for plan in payload(contents_of_trace())["plans"])


def test_the_page_draws_the_parts_and_keeps_the_scale(contents, tmp_path):
    from tests.report.browser import chart, chromium, complaints, layout, press, settle

    for name, shown in (("with", contents), ("without", contents_of_trace())):
        write_page(shown, tmp_path / f"{name}.html")
    with chromium() as driver:
        driver.get((tmp_path / "with.html").as_uri())
        settle(driver)
        traces = chart(driver, "step-time")
        assert [trace["name"] for trace in traces][:2] == ["dispatch", "FFN, mean rank"]
        for trace, part in zip(traces, PARTS, strict=False):
            np.testing.assert_allclose(trace["y"], contents.plans[1].step.layer_ms()[part], rtol=1e-6)
        np.testing.assert_allclose(traces[4]["y"], contents.plans[0].step.layer_ms()["step"], rtol=1e-6)
        scale = layout(driver, "step-time")["yaxis"]["range"]
        press(driver, "b")
        assert layout(driver, "step-time")["yaxis"]["range"] == scale
        np.testing.assert_allclose(
            chart(driver, "step-time")[3]["y"], contents.plans[0].step.layer_ms()["combine"], rtol=1e-6
        )
        driver.get((tmp_path / "without.html").as_uri())
        settle(driver)
        assert not driver.find_element("id", "step-time-part").is_displayed()
        assert complaints(driver) == []


def test_layers_keep_their_place_where_one_has_no_tokens():
    load = some_trace().load()
    tokens = load.total.copy()
    tokens[1] = 0
    found = gather(type(load)(tokens, shape=SHAPE), topology=TOPOLOGY, cost=COST)
    pytest.importorskip("pandas")
    of_greedy = tables.layers(found).query("plan == 'greedy'")
    assert of_greedy["predicted_step_ms"].isna().tolist() == [False, True, False]
