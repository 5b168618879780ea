import json

import numpy as np
import pytest

from eplb_traces import InputError, read_load
from tests.traces.examples import RECORDINGS, needs_recordings


def read(tmp_path, document):
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "load.json").write_text(text)
    return read_load(tmp_path / "load.json")


def test_zero_layers_are_dense_and_zero_steps_unused(tmp_path):
    moe = [[1, 0, 2], [3, 4, 5]]
    step = [[0, 0, 0], moe[0], [0, 0, 0], moe[1]]
    nothing = [[0, 0, 0]] * 4
    load = read(tmp_path, {"logical_count": [nothing, step, nothing, step], "rank": 0})
    np.testing.assert_array_equal(load.tokens, [moe, moe])
    assert load.shape.moe_layer_ids == (1, 3)
    assert load.shape.num_hidden_layers == 4


def test_a_layer_that_is_silent_in_some_steps_only_is_kept(tmp_path):
    load = read(tmp_path, {"logical_count": [[[1, 2], [0, 0]], [[1, 2], [3, 4.5]]]})
    assert load.tokens.shape == (2, 2, 2)
    assert load.shape.moe_layer_ids == (0, 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', r"a JSON list: expected one of the known forms of .json"),
        (
            {"physical_to_logical_map": [[0]]},
            r"a JSON object with the keys physical_to_logical_map: expected one of the known forms of .json",
        ),
        ({"logical_count": 3}, r"\$.logical_count lies in 0 lists"),
        ({"logical_count": []}, r"\$.logical_count is an empty list"),
        ({"logical_count": [[]]}, r"\$.logical_count\[0\] is an empty list"),
        ({"logical_count": [1, 2]}, r"\$.logical_count\[0\] lies in 1 lists: expected \[layers\]\[experts\]"),
        ({"logical_count": [[[[1]]]]}, r"\$.logical_count\[0\]\[0\]\[0\]\[0\] lies in 4 lists"),
        ({"logical_count": [[1, 2], [3]]}, r"\$.logical_count\[1\] has 1 entries: expected 2"),
        ({"logical_count": [[1, 2], 3]}, r"\$.logical_count\[1\] is a number: expected a list of 2"),
        ({"logical_count": [[[1]], [[1], [2]]]}, r"\$.logical_count\[1\] has 2 entries: expected 1"),
        ({"logical_count": [[1, 2], [3, "4"]]}, r"\$.logical_count\[1\]\[1\] is a string: expected a number"),
        ({"logical_count": [[1, None]]}, r"\$.logical_count\[0\]\[1\] is a null: expected a number"),
        ({"logical_count": [[1, True]]}, r"\$.logical_count\[0\]\[1\] is a boolean: expected a number"),
        ({"logical_count": [[1, [2]]]}, r"\$.logical_count\[0\]\[1\] is a list: expected a number"),
        ('{"logical_count": [[1, NaN]]}', r"tokens\[window 0, layer 0, expert 1\] = nan"),
        ('{"logical_count": [[1, 1e999]]}', r"tokens\[window 0, layer 0, expert 1\] = inf"),
        ({"logical_count": [[1, -1]]}, r"tokens\[window 0, layer 0, expert 1\] = -1"),
        ({"logical_count": [[1, 10**400]]}, r"\$.logical_count: int too large"),
        ({"logical_count": [[0, 0], [0, 0]]}, "every count is zero: an empty recording .2 layers"),
    ],
)
def test_what_is_wrong_is_named_with_its_json_path(tmp_path, document, message):
    with pytest.raises(InputError, match=rf"load\.json: .*{message}"):
        read(tmp_path, document)


@needs_recordings
@pytest.mark.parametrize("name", ["prefill_in512", "decode_in1800out100"])
def test_real_files(name):
    load = read_load(RECORDINGS / "deepseek-v3" / f"{name}.json")
    assert load.tokens.shape == (1, 58, 256)
    assert load.shape.moe_layer_ids == tuple(range(3, 61))
    assert load.shape.num_hidden_layers == 61


def test_an_integer_that_float64_does_not_hold_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"logical_count": [[9007199254740993, 1], [9007199254740994, 2]]}')
    with pytest.raises(InputError, match=r"logical_count\[0\]\[0\] = 9007199254740993: expected at most 2\^53"):
        read_load(path)
    path.write_text('{"logical_count": [[9007199254740994, 1], [1e300, 2]]}')
    assert read_load(path).tokens[0, 0, 0] == 9007199254740994
