"""Engines as targets: rule, format, limits, metric, flags, and their own algorithms beside ours."""

from pathlib import Path

import numpy as np
import pytest

import eplb
from eplb import EngineTarget, Placement, Topology
from eplb.core.problem import GroupMode
from eplb.dispatch.engine_dispatch import ENGINES
from eplb.errors import FormatError, InputError
from eplb.formats import FORMATS
from eplb.planning.engine_comparison import compare_engines

_LOAD = eplb.ExpertLoad(np.random.default_rng(0).lognormal(4, 1, (3, 16)).round() + 1)
_MACHINE = Topology(2, 2, 6)
_SHAPE = eplb.ModelShape(3, 16, moe_layer_ids=(1, 2, 3), num_hidden_layers=4)


@pytest.mark.parametrize(
    ("engine", "key"),
    [("sglang", "balancedness_sglang"), ("vllm", "balancedness_vllm"), ("trtllm", "imbalance_ratio_trtllm")],
)
def test_the_metric_is_the_engines_own_under_its_own_rule(engine, key):
    target = EngineTarget.named(engine)
    placement = eplb.plan(_LOAD, _MACHINE, "greedy").placement
    judged = eplb.evaluate(placement, _LOAD, target.rule)
    name, value = target.metric(judged)
    assert value == judged.summary()[key]
    assert target.chosen.row.version.split("-")[-1] in name
    with pytest.raises(InputError, match=rf"engine {engine} dispatches by {target.rule}: the evaluation is under"):
        target.metric(eplb.evaluate(placement, _LOAD, "online"))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_a_format_a_metric_and_an_algorithm(engine):
    target = EngineTarget.named(engine)
    made = eplb.plan(_LOAD, _MACHINE, "greedy", dispatch=target.rule)
    target.check(made.placement)
    assert target.format in FORMATS
    assert target.metric(eplb.evaluate(made.placement, _LOAD, target.rule))[1] >= 0
    assert eplb.plan(_LOAD, _MACHINE, target.own.strategy).placement.num_slots == 24


def test_the_flags_load_the_file_and_lead_to_the_rule():
    made = eplb.plan(eplb.ExpertLoad(_LOAD.tokens, shape=_SHAPE), _MACHINE, "greedy")
    flags = EngineTarget.named("sglang", {"algorithm": "dynamic"}).flags(Path("map.json"), made)
    assert "--init-expert-location map.json --ep-size 4 --ep-num-redundant-experts 8" in flags
    assert flags.endswith("\n--moe-a2a-backend deepep --ep-dispatch-algorithm dynamic")


def test_the_notes_name_the_source_and_missing_dense_layers():
    target = EngineTarget.named("sglang")
    assert "init_by_mapping" in target.notes(_SHAPE)[0]
    assert not any("dense" in text for text in target.notes(_SHAPE))
    assert "give --moe-layers and --hidden-layers" in target.notes(eplb.ModelShape(3, 16))[-1]


@pytest.mark.parametrize(
    ("engine", "row", "topology", "message"),
    [
        ("ascend", [0, 0, 1, 2], Topology(1, 2, 2), "rank 0 holds expert 0 twice"),
        ("mindie", [0, 0, 1, 2], Topology(1, 2, 2), "rank 0 holds expert 0 twice"),
        ("sglang", [0, 1, 2, -1], Topology(1, 2, 2), "slot 3 is empty"),
        ("vllm", [0, 1, 2, 0], Topology(1, 2, (3, 1)), "rank 1 has 1 slots and rank 0 has 3"),
        ("sglang", [0, 1, 2], Topology(2, (2, 1), 1), r"nodes of \[2, 1\] ranks: SGLang divides the ranks evenly"),
    ],
)
def test_what_an_engine_cannot_run_is_refused(engine, row, topology, message):
    with pytest.raises(FormatError, match=message):
        EngineTarget.named(engine).check(Placement([row], 3, topology))


def test_duplicates_are_left_to_engines_that_load_them():
    EngineTarget.named("sglang").check(Placement([[0, 0, 1, 2]], 3, Topology(1, 2, 2)))


def test_the_own_algorithm_is_hierarchical_where_the_nodes_divide_the_groups():
    own = EngineTarget.named("sglang").own
    assert own.group_mode(8, Topology(4, 2, 2)) is GroupMode.PINNED
    assert own.group_mode(8, Topology(3, 2, 2)) is GroupMode.FREE
    assert own.group_mode(1, Topology(1, 2, 2)) is GroupMode.FREE
    assert EngineTarget.named("trtllm").own.group_mode(8, Topology(4, 2, 2)) is GroupMode.FREE


def test_experts_in_order_are_named_as_such():
    assert EngineTarget.named("ascend").own.plan_name == "experts in order"
    assert EngineTarget.named("sglang").own.plan_name == "deepseek"


def test_engines_are_compared_under_their_own_rules():
    sources = [0.4, 0.2, 0.2, 0.2]
    targets = [EngineTarget.named(name) for name in ("sglang", "ascend")]
    sglang, ascend = compare_engines(_LOAD, _MACHINE, targets, strategy="greedy", sources=sources)
    deepseek = eplb.plan(_LOAD, _MACHINE, "deepseek").placement
    judged = eplb.evaluate(deepseek, _LOAD, "sglang_static", sources=sources)
    assert sglang.own.summary() == judged.summary()
    ours = eplb.plan(_LOAD, _MACHINE, "greedy", dispatch="ascend", sources=sources).placement
    assert ascend.ours.summary() == eplb.evaluate(ours, _LOAD, "ascend", sources=sources).summary()
    assert sglang.ours_strategy == "greedy"
