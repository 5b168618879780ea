import json

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace

CONFIG = {"num_moe_layers": 2, "num_of_experts": 4, "collection_Interval": 8, "num_of_selected_experts": [2]}


def folder(tmp_path, *ranks, phase="decode", config=CONFIG):
    """A dump: for each rank a list of rows, or a text."""
    if config is not None:
        (tmp_path / "model_gen_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for rank, rows in enumerate(ranks):
        text = rows if isinstance(rows, str) else "\r\n".join(",".join(map(str, row)) for row in rows) + "\r\n"
        (tmp_path / f"{phase}_{rank}.csv").write_text(text)
    return tmp_path


# Two layers, two matrices of totals; rank 1 was stopped in its third.
RANK_0 = [[1, 0], [2, 3], [5, 0], [2, 4]]
RANK_1 = [[7, 7], [0, 1], [8, 9], [2, 1], [9, 9]]


def test_windows_are_the_differences_of_the_totals(tmp_path):
    path = folder(tmp_path, RANK_0, RANK_1)
    (tmp_path / "decode_topk_0.csv").write_text("not read")
    (tmp_path / "decode_0_bak.csv").write_text("not read")
    load = read_load(path)
    np.testing.assert_array_equal(load.tokens, [[[1, 0, 7, 7], [2, 3, 0, 1]], [[4, 0, 1, 2], [0, 1, 2, 0]]])
    assert load.labels == ("decode, matrix 0", "decode, matrix 1")
    assert load.shape == ModelShape(2, 4, 2)
    shape = ModelShape(2, 4, 2, moe_layer_ids=(3, 4), num_hidden_layers=5)
    assert read_load(path, shape=shape).shape == shape


def test_a_deployment_table_says_what_the_columns_are(tmp_path):
    # Layer 0: rank 0 holds experts 3, 1, 0, rank 1 holds 2, 0, 1; layer 1 the same with the ranks changed.
    held = [[[3, 1, 0], [2, 0, 1]], [[2, 0, 1], [3, 1, 0]]]
    layers = [{"device_list": [{"device_expert": experts} for experts in row]} for row in held]
    (tmp_path / "table.json").write_text(json.dumps({"moe_layer_count": 2, "layer_list": layers}))
    config = {**CONFIG, "eplb_expert_map_file": "/some/other/machine/table.json"}
    path = folder(tmp_path, [[1, 2, 3], [4, 5, 6]], [[10, 20, 30], [40, 50, 60]], phase="prefill", config=config)
    # Layer 0: expert 0 = 3 + 20, 1 = 2 + 30, 2 = 10, 3 = 1. Layer 1: expert 0 = 5 + 60, 1 = 6 + 50, 2 = 4, 3 = 40.
    np.testing.assert_array_equal(read_load(path).tokens, [[[23, 32, 10, 1], [65, 56, 4, 40]]])
    (tmp_path / "table.json").write_text(json.dumps({"layer_list": layers[:1]}))
    with pytest.raises(InputError, match=r"table.json: has 1 layers, the first with \[3, 3\] experts on its devices"):
        read_load(path)
    held[0][0][0] = 4
    layers = [{"device_list": [{"device_expert": experts} for experts in row]} for row in held]
    (tmp_path / "table.json").write_text(json.dumps({"layer_list": layers}))
    with pytest.raises(InputError, match="has an id outside 0 to 3"):
        read_load(path)
    (tmp_path / "table.json").write_text('{"layer_list": [3]}')
    with pytest.raises(InputError, match="not a deployment table"):
        read_load(path)
    (tmp_path / "table.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_load(path)


def test_generated_dumps_come_back(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 1000, (5, 2, 24))
    totals = tokens.cumsum(axis=0).reshape(-1, 24)
    ranks = [totals[:, 2 * rank : 2 * rank + 2].tolist() for rank in range(12)]
    load = read_load(folder(tmp_path, *ranks, config={**CONFIG, "num_of_experts": 24}))
    np.testing.assert_array_equal(load.tokens, tokens)


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (None, [RANK_0, RANK_1], "cannot be read: No such file"),
        ("{", [RANK_0, RANK_1], "model_gen_config.json: not JSON"),
        ({**CONFIG, "num_moe_layers": 0}, [RANK_0, RANK_1], r"\$.num_moe_layers = 0: expected an integer >= 1"),
        ({**CONFIG, "num_of_experts": 8}, [RANK_0, RANK_1], "num_experts = 4: the file says 8"),
        ({**CONFIG, "num_dangling_shared_experts": 2}, [RANK_0, RANK_1], "shared_experts = 2: expected 0"),
        ({**CONFIG, "num_of_selected_experts": [5]}, [RANK_0, RANK_1], "top_k = 5: expected at most"),
        (CONFIG, [RANK_0, RANK_1[:1]], "decode_1.csv: has 1 rows: expected at least 2, one a MoE layer"),
        (CONFIG, [RANK_0, ""], "decode_1.csv: the file is empty"),
        (CONFIG, [RANK_0, "1,2\n3\n"], "decode_1.csv: not a table of counts"),
        (CONFIG, [RANK_0, "1,2\n3,x\n"], "decode_1.csv: not a table of counts"),
        (CONFIG, ["1,2\n3,-4\n", RANK_1], "decode_0.csv: row 1, column 1 = -4.0: expected a finite number >= 0"),
        (
            CONFIG,
            [[*RANK_0, [5, 0], [1, 4]], RANK_1],
            "decode_0.csv: matrix 2, layer 1, slot 0 = 1: expected at least 2 as before, totals never fall",
        ),
        (CONFIG, [RANK_0], "1 ranks have 2 slots: expected 4, one for each expert"),
        (CONFIG, [[[0, 0], [0, 0]]] * 2, "every count is zero: an empty recording"),
        (CONFIG, [], "the folder has no prefill_"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, config, ranks, message):
    path = folder(tmp_path, *ranks, config=config)
    with pytest.raises(InputError, match=message):
        read_load(path, num_experts=4, format="mindie")


def test_ranks_that_are_missing_and_mixed_phases_are_refused(tmp_path):
    path = folder(tmp_path, RANK_0, RANK_1)
    with pytest.raises(InputError, match=r"MindIE hotspot dump, .* holds tokens per expert"):
        read_trace(path)
    (path / "decode_0.csv").rename(path / "decode_2.csv")
    with pytest.raises(InputError, match=r"no decode_0\.csv beside 2 files: expected every rank from 0 on"):
        read_load(path)
    folder(tmp_path, RANK_0, phase="prefill")
    with pytest.raises(InputError, match=r"has prefill_\*\.csv and decode_\*\.csv: expected one of them"):
        read_load(path)
