import pytest

from eplb_traces import InputError, ModelShape


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
