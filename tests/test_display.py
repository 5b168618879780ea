"""How objects of the library show themselves: one short line, and a small table in a notebook."""

import html.parser
import re

import numpy as np
import pytest

import eplb
from eplb.cost import model_sizes, named_calibration
from eplb.evaluation.traffic import expected_traffic
from eplb.report import gather
from eplb.report.pictures import draw_expert_load, draw_redundancy
from eplb_traces import display
from tests.traces.examples import small_trace

TRACE = small_trace()
LOAD = TRACE.load()
TOPOLOGY = eplb.Topology.for_experts(LOAD.num_experts, num_ranks=2, num_nodes=2, num_redundant=2)
HISTORY = np.random.default_rng(2).lognormal(4, 1, (16, 2, 8)).round() + 1


@pytest.fixture(scope="module")
def shown():
    """An object of every public type and of what the public functions return."""
    plan = eplb.plan(LOAD, TOPOLOGY, "greedy")
    other = eplb.plan(LOAD, TOPOLOGY, "linear")
    evaluation = eplb.evaluate(plan, LOAD, trace=TRACE)
    change = eplb.TopologyChange(TOPOLOGY, TOPOLOGY, (0, 1))
    return {
        "DispatchRule": eplb.DispatchRule.EVEN,
        "EngineTarget": eplb.EngineTarget.named("sglang"),
        "Evaluation": evaluation,
        "ExpertLoad": LOAD,
        "GroupMode": eplb.GroupMode.FREE,
        "Horizon": eplb.Horizon(token_s=1e-6),
        "LayerCertificate": plan.layers[0],
        "Migration": eplb.diff(other, plan),
        "ModelShape": LOAD.shape,
        "OnlineSettings": eplb.OnlineSettings(max_moves=3),
        "Placement": plan.placement,
        "Plan": plan,
        "Rebalancer": eplb.Rebalancer(plan.placement),
        "RoutingTrace": TRACE,
        "SolveStatus": eplb.SolveStatus.OPTIMAL,
        "Topology": TOPOLOGY,
        "TopologyChange": change,
        "DeploymentSpace": eplb.DeploymentSpace(nodes=(1, 2)),
        "StepCost": eplb.StepCost(
            model=model_sizes("deepseek-v3"), calibration=named_calibration("h200"), tokens_per_rank=128
        ),
        "Comparison": eplb.compare(LOAD, TOPOLOGY, ["greedy"])[0],
        "TokenSpread": evaluation.spread,
        "Traffic": expected_traffic(plan.placement, TRACE),
        "RankLayout": eplb.for_engine(plan, ep_size=2, ep_rank=1),
        "Score": eplb.backtest(HISTORY, TOPOLOGY, ["linear"])[0],
        "SweepPoint": eplb.sweep(LOAD, 2, 1, [0])[0],
        "Served": eplb.simulate(HISTORY, TOPOLOGY, ["never"], interval=4)[0],
        "ReportContents": gather(LOAD, topology=TOPOLOGY, title="a<b>&" * 40),
    }


ENUMS = {"DispatchRule", "GroupMode", "SolveStatus"}
PLAIN = {"Traffic"}  # has a picture, and no table


def test_every_public_type_is_tested(shown):
    assert {name for name in eplb.__all__ if name[0].isupper()} <= set(shown)
    assert all(type(value).__name__ == name for name, value in shown.items())


def test_a_repr_is_one_short_line_with_the_type(shown):
    for name, value in shown.items():
        text = repr(value)
        assert len(text) <= 100, text
        assert "\n" not in text
        assert name in text


class Parser(html.parser.HTMLParser):
    """Counts open elements."""

    def __init__(self):
        super().__init__()
        self.depth, self.rows, self.text = 0, 0, ""

    def handle_starttag(self, tag, attrs):
        self.depth += tag != "br"
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_a_table_of_closed_elements(shown):
    for name in shown.keys() - ENUMS - PLAIN:
        parser = Parser()
        parser.feed(shown[name]._repr_html_())
        assert (parser.depth, parser.rows > 0) == (0, True), name
        assert len(parser.text) < 3000, name


def test_text_of_others_is_escaped(shown):
    assert "a<b>&" in shown["ReportContents"].title
    assert "<b>" not in shown["ReportContents"]._repr_html_()
    assert display.facts_html("<i>", {"<a>": ["<b>", "c"]}).count("&lt;") == 3


def test_a_repr_omits_defaults_and_cuts_long_sequences():
    assert repr(eplb.Topology(1, 2, 3)) == "Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)"
    many = repr(eplb.ModelShape(61, 256, top_k=8, moe_layer_ids=tuple(range(61))))
    assert many == "ModelShape(num_layers=61, num_experts=256, top_k=8, moe_layer_ids=(0, 1, 2, 3, ... 61 in all))"
    assert display.cut("x" * 101) == "x" * 96 + "...)"
    assert display.cut("x" * 100) == "x" * 100


def test_frames_hold_what_the_arrays_hold(shown):
    evaluation, migration = shown["Evaluation"], shown["Migration"]
    frame = evaluation.to_frame()
    assert frame["max_over_mean"].tolist() == evaluation.max_over_mean.tolist()
    assert frame["gap"].tolist() == evaluation.gap.tolist()
    assert frame["nodes_per_token"].tolist() == shown["TokenSpread"].nodes_per_token.tolist()
    assert "nodes_per_token" not in eplb.evaluate(shown["Plan"], LOAD).to_frame()
    rows = migration.to_frame()
    assert len(rows) == migration.layer.size > 0
    new = migration.after.physical_to_logical_map
    assert all(new[row.layer, row.slot] == row.expert for row in rows.itertuples())
    assert (rows["hop"] == "other_node").sum() == migration.summary()["moved_between_nodes"]
    (compared,) = shown["Comparison"].to_frame().to_dict("records")
    assert compared["strategy"] == "greedy"
    assert compared["max_over_mean_mean"] == shown["Comparison"].evaluation.summary()["max_over_mean_mean"]


def test_a_picture_is_shown_by_a_notebook_as_its_figure(shown):
    pytest.importorskip("matplotlib")
    from eplb.report.notebook_axes import NotebookAxes

    for axes in (draw_expert_load(LOAD), draw_redundancy([shown["SweepPoint"]])):
        assert isinstance(axes, NotebookAxes)
        assert axes._repr_png_().startswith(b"\x89PNG")


def test_a_plan_in_a_notebook_has_its_notes(shown):
    assert "auto: greedy" in eplb.plan(LOAD, TOPOLOGY)._repr_html_()
    assert re.search(r"above the bound at worst\)$", repr(shown["Plan"]))
    bare = eplb.Plan(shown["Placement"], LOAD.shape, "given")
    assert "no certificates" in bare._repr_html_()
    assert "bound" not in repr(bare)
