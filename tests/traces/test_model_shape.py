import pickle
from dataclasses import replace

import pytest

from eplb_traces import InputError, ModelShape
from eplb_traces.model_shape import ShapeConflictError, id_ranges, id_runs, merge_shapes


def test_deepseek_v3_is_legal():
    shape = ModelShape(58, 256, 8, 8, 4, moe_layer_ids=tuple(range(3, 61)), num_hidden_layers=61)
    assert shape.experts_per_group == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0}, r"num_layers = 0: expected an integer >= 1"),
        ({"num_experts": True}, r"num_experts = True: expected an integer >= 1"),
        ({"top_k": 9}, r"top_k = 9: expected at most num_experts = 8"),
        ({"num_expert_groups": 3}, r"num_expert_groups = 3: expected a divisor of num_experts = 8"),
        ({"num_expert_groups": 4, "top_k_groups": 5}, r"top_k_groups = 5: expected 1 to 4"),
        ({"num_expert_groups": 4, "top_k_groups": 1, "top_k": 3}, r"top_k = 3: 1 groups hold only 2 experts"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers = 1: expected at least num_layers = 2"),
        ({"moe_layer_ids": (1,)}, r"moe_layer_ids has 1 entries: expected num_layers = 2"),
        ({"num_layers": 10**9}, r"num_layers = 1000000000: expected at most 65536"),
        ({"num_hidden_layers": 10**18}, r"num_hidden_layers = 10+: expected at most 65536"),  # a row for each in a file
        ({"moe_layer_ids": (1, 1 << 16)}, r"moe_layer_ids has 65536: expected ids below 65536"),
        ({"moe_layer_ids": (2, 1)}, r"expected ascending ids"),
        (
            {"moe_layer_ids": (1, 5), "num_hidden_layers": 5},
            r"moe_layer_ids\[1\] = 5: expected < num_hidden_layers = 5",
        ),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        ModelShape(**{"num_layers": 2, "num_experts": 8, **fields})


def test_a_shape_takes_what_it_does_not_have_from_another():
    known = ModelShape(2, 8, 3, 4, 2)
    other = ModelShape(2, 8, num_expert_groups=2, moe_layer_ids=(1, 5), num_hidden_layers=6)
    assert merge_shapes(known, other) == ModelShape(2, 8, 3, 4, 2, moe_layer_ids=(1, 5), num_hidden_layers=6)
    assert merge_shapes(other, known) == replace(other, top_k=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3, "moe_layer_ids": None}, "layers = 2, but 3 was given"),
        ({"num_experts": 16}, "experts = 8, but 16 was given"),
        ({"top_k": 2}, "top_k = 3, but 2 was given"),
        ({"moe_layer_ids": (3, 4)}, "MoE layer ids = 1, 5, but 3-4 was given"),
        ({"num_hidden_layers": 7}, "hidden layers = 6, but 7 was given"),
    ],
)
def test_shapes_of_different_models_are_not_merged(change, message):
    shape = ModelShape(2, 8, 3, moe_layer_ids=(1, 5), num_hidden_layers=6)
    with pytest.raises(ShapeConflictError) as caught:
        merge_shapes(shape, replace(shape, **change))
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


@pytest.mark.parametrize(
    ("ids", "text"),
    [((), ""), ((4,), "4"), ((3, 4), "3-4"), ((0, 1, 2, 4, 6, 7), "0-2, 4, 6-7"), (range(3, 61), "3-60")],
)
def test_ids_as_ranges(ids, text):
    assert id_ranges(ids) == text
    assert [i for run in id_runs(ids) for i in run] == list(ids)
