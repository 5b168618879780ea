"""One array under any name, in any file, of any type of number is judged the same way."""

import json

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace
from eplb_traces.readers import ReadOptions, read
from eplb_traces.readers.logits import chosen_experts
from tests.traces.examples import joined, random_ids

SHAPE = ModelShape(4, 16, 2)
RNG = np.random.default_rng(0)
LAYERS = (3, 4, 5, 6)
COUNTS = RNG.integers(200, 250, (4, 16))
IDS = random_ids(RNG, 40, SHAPE)
LOGITS = RNG.normal(size=(40, 4, 16)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=2, keepdims=True)


def npy(path, array):
    np.save(path / "a.npy", array)
    return path / "a.npy"


def npz(path, array):
    np.savez(path / "a.npz", whatever=array)
    return path / "a.npz"


def safetensors(path, array):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"whatever": np.ascontiguousarray(array)}, path / "a.safetensors")
    return path / "a.safetensors"


def torch_tensor(path, array):
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), path / "a.pt")
    return path / "a.pt"


def torch_dict(path, array):
    torch = pytest.importorskip("torch")
    torch.save({"whatever": torch.from_numpy(np.ascontiguousarray(array))}, path / "a.pth")
    return path / "a.pth"


def json_list(path, array):
    (path / "a.json").write_text(json.dumps(np.asarray(array).tolist()))
    return path / "a.json"


WRITERS = [npy, npz, safetensors, torch_tensor, torch_dict, json_list]
REFUSED = {
    "ids": (IDS.astype(np.int32), "looks like expert ids"),
    "whole floats": (IDS.astype(np.float32), "looks like expert ids"),
    "ids of one layer": (IDS[:, 0].astype(np.int64), "looks like expert ids"),
    "ids, layers first": (IDS.swapaxes(0, 1).astype(np.int64), "looks like expert ids"),
    "logits": (LOGITS, "as router logits have: give top_k"),
    "probabilities": (PROBABILITIES, "rows that add up to 1"),
    "scores": (1 / (1 + np.exp(-LOGITS)), "fractions from 0 to 1 only"),
    "pattern": ((COUNTS[None] + np.arange(3)[:, None, None]) % 2, "only 0 and 1"),
    "transitions": (RNG.integers(100, 900, (3, 16, 16)), "is square"),
    "experts first": (RNG.integers(1000, 9000, (256, 58)), r"may be \[experts, layers\]"),
    "top-1 ids": (RNG.integers(0, 16, (40, 4, 1)), "one number a row"),
    "one layer": (COUNTS[0], "has 1 axes of 16 numbers"),
}


@pytest.mark.parametrize("write", WRITERS)
def test_counts_are_a_load(tmp_path, write):
    np.testing.assert_array_equal(read_load(write(tmp_path, COUNTS)).total, COUNTS)
    np.testing.assert_array_equal(read_load(write(tmp_path, COUNTS), num_experts=16).total, COUNTS)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_load_is_refused_with_the_reason(tmp_path, write, name):
    array, message = REFUSED[name]
    if write is json_list and name == "one layer":
        pytest.skip("a flat list is of no known form")
    with pytest.raises(InputError, match=message):
        read_load(write(tmp_path, array))


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">i4", "<u8", ">f4", "f2", "f8"])
def test_types_and_byte_orders_of_numbers_do_not_matter(tmp_path, dtype):
    np.testing.assert_array_equal(read_load(npy(tmp_path, COUNTS.astype(dtype))).total, COUNTS)
    np.testing.assert_array_equal(
        joined(read_trace(npy(tmp_path, IDS.astype(dtype)), 16, moe_layer_ids=LAYERS))["expert_ids"], IDS
    )


def test_bfloat16_is_widened(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensor = torch.from_numpy(COUNTS).bfloat16()  # eight bits hold 200 to 249
    torch.save(tensor, tmp_path / "a.pt")
    save_file({"load": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        np.testing.assert_array_equal(read_load(tmp_path / name).total, COUNTS)


def test_the_axis_of_layers_is_taken_from_the_caller_and_never_guessed(tmp_path):
    for array in (IDS, IDS.swapaxes(0, 1)):
        trace = read_trace(npy(tmp_path, array), 16, moe_layer_ids=LAYERS)
        np.testing.assert_array_equal(joined(trace)["expert_ids"], IDS)
        with pytest.raises(InputError, match=r"\[tokens, layers, top-k\] or \[layers, tokens, top-k\]"):
            read_trace(npy(tmp_path, array), 16)


def test_more_rows_than_any_model_has_layers_are_tokens(tmp_path):
    ids = random_ids(RNG, 129, SHAPE)
    np.testing.assert_array_equal(joined(read_trace(npy(tmp_path, ids), 16))["expert_ids"], ids)
    with pytest.raises(InputError, match=r"\[tokens, layers, top-k\] or \[layers, tokens, top-k\]"):
        read_trace(npy(tmp_path, ids.swapaxes(0, 1)), 16)


def test_experts_first_is_turned_where_the_number_of_experts_shows_it(tmp_path):
    reading = read(npy(tmp_path, COUNTS.T), ReadOptions(num_experts=16))
    np.testing.assert_array_equal(reading.load().total, COUNTS)
    assert "[experts, layers]" in reading.form


def test_equal_sums_of_rows_show_that_rows_are_layers(tmp_path):
    load = np.array([RNG.multinomial(10000, np.ones(8) / 8) for _ in range(32)])
    np.testing.assert_array_equal(read_load(npy(tmp_path, load)).total, load)
    with pytest.raises(InputError, match=r"may be \[experts, layers\]"):
        read_load(npy(tmp_path, load.T))


def test_a_square_load_needs_its_layers(tmp_path):
    square = RNG.integers(100, 900, (16, 16))
    with pytest.raises(InputError, match="is square"):
        read_load(npy(tmp_path, square), num_experts=16)
    load = read_load(npy(tmp_path, square), num_experts=16, moe_layer_ids=tuple(range(16)))
    np.testing.assert_array_equal(load.total, square)


def test_probabilities_are_a_trace_only_where_one_is_asked_for(tmp_path):
    path = npy(tmp_path, PROBABILITIES)
    ids = joined(read_trace(path, top_k=2, moe_layer_ids=(0, 1, 2, 3)))["expert_ids"]
    np.testing.assert_array_equal(ids, np.argsort(-PROBABILITIES, axis=2, kind="stable")[:, :, :2])
    with pytest.raises(InputError, match="rows that add up to 1"):
        read_load(path, top_k=2, moe_layer_ids=(0, 1, 2, 3))


def test_choices_of_logits_ties_and_groups():
    # Ties go to the lowest id; the group of experts 2 and 3 has the largest logit.
    assert chosen_experts(np.array([[1.0, 3.0, 3.0, 0.0]]), 2).tolist() == [[1, 2]]
    logits = np.array([[4.0, 3.0, 5.0, 0.0]])
    assert chosen_experts(logits, 2).tolist() == [[2, 0]]
    assert chosen_experts(logits, 2, num_groups=2, top_groups=1).tolist() == [[2, 3]]
    with pytest.raises(InputError, match=r"top_k = 5 .* expected 1 to 4"):
        chosen_experts(logits, 5)


def test_layers_without_tokens_are_dense_at_the_front_and_holes_elsewhere(tmp_path):
    stem = np.concatenate([np.zeros((1, 16), dtype=int), COUNTS])
    load = read_load(npy(tmp_path, stem))
    assert load.shape.moe_layer_ids == (1, 2, 3, 4)
    np.testing.assert_array_equal(load.total, COUNTS)
    hole = np.insert(COUNTS, 2, 0, axis=0)
    with pytest.raises(InputError, match="layers 2 have no token"):
        read_load(npy(tmp_path, hole))


def test_layer_ids_beside_a_load_are_kept_and_sorted(tmp_path):
    np.savez(tmp_path / "a.npz", load=COUNTS, moe_layer_ids=np.array([10, 9, 3, 4]))
    load = read_load(tmp_path / "a.npz")
    assert load.shape.moe_layer_ids == (3, 4, 9, 10)
    np.testing.assert_array_equal(load.total, COUNTS[[2, 3, 1, 0]])


def test_columns_that_are_no_experts_are_left_out_of_counts(tmp_path):
    path = npy(tmp_path, np.concatenate([COUNTS, COUNTS[:, :2]], axis=1))
    reading = read(path, ReadOptions(num_experts=16, ignore_columns=(16, 17)))
    np.testing.assert_array_equal(reading.load().total, COUNTS)
    assert "columns 16, 17 left out" in reading.notes
    with pytest.raises(InputError, match=r"18 columns and the model 16 experts.*--recorded-under.*--ignore-columns"):
        read_load(path, num_experts=16)
    with pytest.raises(InputError, match=r"ignore_columns has 18 \(--ignore-columns\): the file has 18 columns"):
        read_load(path, num_experts=16, ignore_columns=(18,))


def test_a_shared_expert_in_a_fixed_column_or_under_a_fixed_id_leaves_a_trace(tmp_path):
    fused = np.concatenate([IDS, np.full((40, 4, 1), 16, dtype=IDS.dtype)], axis=2)
    for options in ({"ignore_ids": (16,)}, {"ignore_columns": (2,)}):
        trace = read_trace(npy(tmp_path, fused), 16, moe_layer_ids=LAYERS, **options)
        np.testing.assert_array_equal(joined(trace)["expert_ids"], IDS)
    with pytest.raises(InputError, match=r"= 16: expected 0 <= id < 16; .* ignore_ids \(--ignore-ids\)"):
        read_trace(npy(tmp_path, fused), 16, moe_layer_ids=LAYERS)
    with pytest.raises(InputError, match=r"ignore_ids \(--ignore-ids\) has no effect"):
        read_trace(npy(tmp_path, IDS), 16, moe_layer_ids=LAYERS, ignore_ids=(99,))


def test_zero_experts_leave_tokens_with_unlike_choices_which_are_counted(tmp_path):
    path = npy(tmp_path, IDS)
    reading = read(path, ReadOptions(num_experts=12, moe_layer_ids=LAYERS, ignore_ids=(12, 13, 14, 15)))
    counts = [np.bincount(IDS[:, layer].ravel(), minlength=16)[:12] for layer in range(4)]
    np.testing.assert_array_equal(reading.load().total, counts)
    assert any("unlike numbers of choices" in note for note in reading.notes)
    windows = read_load(path, num_experts=12, moe_layer_ids=LAYERS, ignore_ids=(12, 13, 14, 15), window=20)
    np.testing.assert_array_equal(windows.total, counts)
    assert windows.labels == ("steps 0-19", "steps 20-39")
    with pytest.raises(InputError, match="expected a token-level trace"):
        read_trace(path, 12, moe_layer_ids=LAYERS, ignore_ids=(12, 13, 14, 15))


def test_a_map_among_tensors_is_no_load_and_a_pickle_is_called_one(tmp_path):
    np.savez(tmp_path / "a.npz", physical_to_logical_map=COUNTS)
    with pytest.raises(InputError, match="physical_to_logical_map is a placement, not a load"):
        read_load(tmp_path / "a.npz")
    import pickle

    for name in ("a.pt", "a.npy", "a.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({"load": COUNTS}))
        with pytest.raises(InputError, match="a Python pickle, which can run any code") as caught:
            read_load(tmp_path / name)
        assert "allow_pickle" not in str(caught.value)


def test_counts_of_slots_are_made_experts_by_the_map(tmp_path):
    pattern = np.tile(np.arange(20) % 16, (4, 1))
    slots = RNG.integers(100, 900, (4, 20))
    expected = slots[:, :16].copy()
    expected[:, :4] += slots[:, 16:]
    np.testing.assert_array_equal(read_load(npy(tmp_path, slots), recorded_under=pattern).total, expected)
    with pytest.raises(InputError, match=r"recorded_under \(--recorded-under\) has 4 x 20 .*: the file has 4 x 16"):
        read_load(npy(tmp_path, COUNTS), recorded_under=pattern)


def test_running_totals_are_told(tmp_path):
    windows = np.random.default_rng(0).integers(1, 9000, (6, 4, 40))
    fallen = windows.cumsum(0)
    fallen[3, 0, 0] = 0  # a recorder that was started again
    said = "no count falls from one window to the next: if these are running totals, give their differences"
    for tokens, notes in ((windows, ()), (windows.cumsum(0), (said,)), (fallen, ())):
        np.save(tmp_path / "a.npy", tokens)
        assert read(tmp_path / "a.npy").notes == notes


def test_columns_of_tokens_beside_counts_are_named(tmp_path):
    windows = np.random.default_rng(0).integers(1, 900, (3, 4, 16))
    np.savez(tmp_path / "a.npz", load=windows, step=[5, 3, 4], domain=["a", "b", "c"])
    assert read(tmp_path / "a.npz").notes == ("arrays domain, step left out: they are of tokens, not of windows",)
    ids = np.stack([np.arange(3), np.arange(3) + 1], axis=1)[:, None]
    np.savez(tmp_path / "a.npz", topk_ids=ids, step=[5, 3, 4])
    assert not read(tmp_path / "a.npz", ReadOptions(num_experts=16)).notes


def test_ranks_in_place_of_windows_are_told(tmp_path):
    counts = np.random.default_rng(0).integers(100, 9000, (4, 40))
    ranks = np.stack([np.where(np.arange(40) // 10 == rank, counts, 0) for rank in range(4)])
    said = "no expert has tokens in two windows: if these are ranks, not times, sum them (--window sum)"
    for tokens, notes in ((ranks, (said,)), (ranks + counts, ()), (ranks[[0, 1, 2, 2]], ())):
        np.save(tmp_path / "a.npy", tokens)
        found = read(tmp_path / "a.npy", ReadOptions(num_experts=40)).notes
        assert tuple(note for note in found if "rank" in note and "block" not in note and "as if" not in note) == notes


@pytest.mark.parametrize("digits", [1, 4])
def test_percentages_are_told(tmp_path, digits):
    counts = np.random.default_rng(0).integers(100, 900, (2, 4, 40))
    percent = (counts / counts.sum(axis=2, keepdims=True) * 100).round(digits)
    np.save(tmp_path / "a.npy", percent)
    assert read(tmp_path / "a.npy").notes == ("every layer sums to 100: percentages of the tokens, not tokens",)
    np.save(tmp_path / "a.npy", percent * 7)
    assert not read(tmp_path / "a.npy").notes
