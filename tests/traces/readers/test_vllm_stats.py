import json

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace


def record(step=7, load=((1, 2, 3), (4, 5, 6)), slots=((0, 1, 1), (1, 0, 0)), **more):
    fields = {"record_type": "eplb_load_stats", "version": 1, "step": step, "num_ranks": 1}
    return fields | {"expert_load": load, "p2l_map": slots} | more


def saved(tmp_path, *records, name="stats.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_every_record_is_read_with_its_own_map(tmp_path):
    path = saved(
        tmp_path,
        {"record_type": "eplb_load_meta", "version": 1},
        record(),
        "",
        record(step=8, load=((0, 0, 0), (0, 0, 0))),
        record(step=9, slots=((1, 0, 0), (0, 1, 1))),
    )
    load = read_load(path)
    # Step 7: layer 0 has experts 0 1 1, layer 1 has 1 0 0. Step 9 the other way round.
    np.testing.assert_array_equal(load.tokens, [[[1, 5], [11, 4]], [[5, 1], [4, 11]]])
    assert load.labels == ("step 7", "step 9")
    assert read_load(path, num_experts=3).tokens[0].tolist() == [[1, 5, 0], [11, 4, 0]]
    shape = ModelShape(2, 2, 1, moe_layer_ids=(1, 2))
    assert read_load(path, shape=shape).shape == shape


def test_it_is_known_by_content_too(tmp_path):
    path = saved(tmp_path, record(), name="stats.txt")
    assert read_load(path).tokens.sum() == 21
    with pytest.raises(InputError, match=r"vLLM eplb_load_stats, .* holds tokens per expert"):
        read_trace(path)


def test_generated_records_come_back(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (5, 3, 8))
    records = []
    for step, window in enumerate(tokens):
        slots = np.stack([rng.permutation(np.r_[np.arange(8), rng.integers(0, 8, 4)]) for _ in range(3)])
        physical = np.zeros(slots.shape, dtype=int)
        for layer in range(3):
            for expert in range(8):
                first, *others = np.flatnonzero(slots[layer] == expert)
                for other in others:
                    physical[layer, other] = window[layer, expert] // 4
                physical[layer, first] = window[layer, expert] - len(others) * (window[layer, expert] // 4)
        records.append(record(step, physical.tolist(), slots.tolist()))
    np.testing.assert_array_equal(read_load(saved(tmp_path, *records)).tokens, tokens)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["{"], "not JSON"),
        ([record(), "[3]"], "line 2: is a list: expected an object"),
        ([record(), record(version=2)], r"line 2: \$.version = 2: expected 1"),
        ([record(load=((1, float("inf"), 3), (4, 5, 6)))], r"\$.expert_load\[0\]\[1\] = inf: expected finite and >= 0"),
        ([record(slots=((0, 1, float("nan")), (1, 0, 0)))], r"\$.p2l_map\[0\]\[2\] = nan: expected an id from 0 to 1"),
        ([record(step="7")], r"line 1: \$.step = '7': expected an integer >= 0"),
        ([record(load=((1, 2), (4, 5)))], r"\$.expert_load is \(2, 2\) and \$.p2l_map \(2, 3\): expected the same"),
        ([record(load=((1, 2, 3), (4, 5)))], r"\$.expert_load is ragged"),
        ([record(load=(1, 2, 3))], r"\$.expert_load is int64 of shape \(3,\): expected numbers \[layers\]\[slots\]"),
        ([record(load=None)], r"\$.expert_load is object of shape \(\)"),
        ([record(load=((1, 2, 3), (4, -5, 6)))], r"\$.expert_load\[1\]\[1\] = -5.0: expected finite and >= 0"),
        ([record(slots=((0, 1, -1), (1, 0, 0)))], r"\$.p2l_map\[0\]\[2\] = -1: expected an id from 0 to 1"),
        ([record(slots=((0, 1, 2), (1, 0, 0)))], r"\$.p2l_map\[0\]\[2\] = 2: expected an id from 0 to 1"),
        ([record(slots=((0, 1, 0.5), (1, 0, 0)))], r"\$.p2l_map\[0\]\[2\] = 0.5: expected an id"),
        ([record(), record(load=[[1, 2, 3]], slots=[[0, 1, 1]])], r"line 2: has \(1, 2\) layers x experts"),
        ([record(load=((0, 0, 0), (0, 0, 0)))], "no 'eplb_load_stats' record with a token: an empty recording"),
        ([{"record_type": "eplb_initial_mapping"}], "no 'eplb_load_stats' record with a token"),
        ([record(load=((2**60, 2, 3), (4, 5, 6)))], "has the count 1152921504606846976"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, records, message):
    with pytest.raises(InputError, match=rf"stats\.jsonl: .*{message}"):
        read_load(saved(tmp_path, *records), num_experts=2)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "stats.jsonl").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InputError, match="not JSON"):
        read_load(tmp_path / "stats.jsonl")


def test_an_expert_without_a_slot_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"line 1: \$\.p2l_map has no slot of expert 1 in layer 0"):
        read_load(saved(tmp_path, record(slots=((0, 2, 2), (2, 1, 0)))))
