"""Small files that look like a dialect and miss one thing: the refusal names it."""

import json

import pytest

from eplb_traces import ExpertLoad, InputError, ModelShape, read_load, read_trace

PROFILE = {"layer": 1, "ranked": [0, 2], "counts": [2, 1]}
RECORD = {"layer": 0, "topk_ids": [0, 1], "token_idx": 0, "req_id": "a"}
TOKENS = "token,layer,expert_0,expert_1\n0,0,1,2\n1,0,2,0\n"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"load_history": []}, "no entry in a list under 'load_history'"),
        ({"token_scores": {}}, "no layer in the profile"),
        ({"token_scores": {"1": {"0": 0.5, "1": 0.5}, "2": {"0": 1.0}}}, "the layers have 1 and 2 experts"),
        ({"token_scores": {"1": 3}}, r"\$\.token_scores\.1 is a int: expected an object"),
        ({"token_scores": {"1": {}}}, r"\$\.token_scores\.1 has shape \(0,\): expected a number for each expert"),
        ({"layers": [PROFILE]}, r"\$\.layers\[0\]: ranked and counts of 2 and 2: expected every expert from 0 on once"),
        ({"logical_count": 3}, r"\$\.logical_count lies in 0 lists: expected \[layers\]\[experts\]"),
        ([{"num_experts": 16}, {"num_experts": 8}, RECORD], "num_experts = 8: 16 in a record before"),
        ([{**RECORD, "req_id": 1.5}], r"req_id = 1\.5: expected a text or an integer"),
    ],
)
def test_json(tmp_path, document, message):
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("layer,expert,tokens\n", {}, "the table has a header and no rows"),
        ("expert,layer_1,layer_01\n0,1,2\n1,3,4\n", {}, "two columns are layer 1"),
        ("expert,hits\n0,1\n1,5\n", {}, "rows are experts, but no column is a layer"),
        ("layer,expert_0,expert_1,e0,e1\n0,1,2,3,4\n", {}, "columns expert_0 and e0 are one"),
        (
            "layer,expert_0,expert_1\n3,1,2\n3,4,5\n",
            {"window": 2},
            r"window = 2 \(--window\): layers repeat without a st",
        ),
        ("lay\0er,1\n2,3\n", {}, "not a table in UTF-8: the first line has zero bytes"),
    ],
)
def test_tables_of_loads(tmp_path, text, options, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_load(tmp_path / "a.csv", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_columns": [2]}, r"ignore_columns = \[2\]: a token has 2 choices"),
        ({"ignore_columns": [0, 1]}, "every choice is ignored"),
        ({"ignore_ids": [0]}, "row 1: 1 of its ids are ignored, 0 of row 0: expected as many in every row"),
    ],
)
def test_tables_of_tokens(tmp_path, options, message):
    (tmp_path / "a.csv").write_text(TOKENS)
    with pytest.raises(InputError, match=message):
        read_trace(tmp_path / "a.csv", num_experts=4, **options)


def test_labels_and_sizes():
    with pytest.raises(InputError, match=r"label '\\ud800': expected a text"):
        ExpertLoad([[[1.0]], [[2.0]]], labels=("a", "\ud800"))
    with pytest.raises(InputError, match="expert_bytes = 0: expected finite and > 0"):
        ModelShape(1, 2, expert_bytes=0)
