import json
import sys

import numpy as np
import pytest

from eplb_traces import InputError, MissingExtraError, ModelShape, read, read_load, read_trace

safetensors = pytest.importorskip("safetensors.numpy")

META = {"num_experts": 3, "num_experts_per_token": 2}


def folder(tmp_path, *ranks, meta=META):
    """A statistics folder with one dictionary of tensors a rank, a dictionary of lists made arrays."""
    if meta is not None:
        (tmp_path / "meta_info.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    for rank, tensors in enumerate(ranks):
        arrays = {key: np.asarray(counts) for key, counts in tensors.items()}
        safetensors.save_file(arrays, tmp_path / f"rank{rank}.safetensors")
    return tmp_path


def test_ranks_are_summed_and_iterations_are_windows(tmp_path):
    path = folder(
        tmp_path,
        {"9_3": [1, 0, 1], "9_4": [2, 0, 0], "10_3": [0, 0, 2], "10_4": [0, 1, 1]},
        {"9_3": [0, 5, 1], "9_4": [2, 0, 0], "10_3": [0, 0, 0]},  # stopped before its last layer
    )
    (tmp_path / "cooccurrence_rank0.safetensors").write_bytes(b"not read")
    (tmp_path / "rank0_numtokens.json").write_text("not read")
    load = read_load(path)
    np.testing.assert_array_equal(load.tokens, [[[1, 5, 2], [4, 0, 0]], [[0, 0, 2], [0, 1, 1]]])
    assert load.labels == ("iteration 9", "iteration 10")
    assert load.shape == ModelShape(2, 3, 2, moe_layer_ids=(3, 4))


def test_a_missing_rank_is_refused_and_a_missing_tensor_told(tmp_path):
    path = folder(tmp_path, *[{"9_3": [1, 0, 1], "10_3": [2, 0, 1]}] * 3)
    (path / "rank1.safetensors").rename(path / "rank01.safetensors")
    assert read(path).notes == ()
    (path / "rank01.safetensors").rename(path / "rank02.safetensors")
    with pytest.raises(InputError, match=r"rank02?.safetensors, and no rank1.safetensors: expected one file"):
        read(path)
    (path / "rank02.safetensors").unlink()
    with pytest.raises(InputError, match=r"rank2.safetensors, and no rank1.safetensors: expected one file"):
        read(path)
    folder(tmp_path, {}, {"9_3": [1, 0, 1]})
    folder(tmp_path, {"9_3": [1, 0, 1], "10_3": [2, 0, 1]})
    assert read(path).notes == ("rank1.safetensors lacks 1 of 2 tensors, as '10_3': the others are counted",)
    folder(tmp_path, {"9_3": [1, 0, 1], "09_3": [2, 0, 1]})
    with pytest.raises(InputError, match=r"rank0\.safetensors: tensor '9_3': layer 3 of iteration 9 is there twice"):
        read(path)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float32])
def test_generated_statistics_come_back(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, (4, 5, 3)).astype(dtype)
    share = rng.integers(0, 2, tokens.shape).astype(dtype) * tokens
    ranks = [
        {f"{100 + i}_{2 * layer}": part[i, layer] for i in range(4) for layer in range(5)}
        for part in (share, tokens - share)
    ]
    load = read_load(folder(tmp_path, *ranks))
    np.testing.assert_array_equal(load.tokens, tokens)
    assert load.shape.moe_layer_ids == (0, 2, 4, 6, 8)
    assert load.labels[0] == "iteration 100"


def test_ten_ranks_are_all_found(tmp_path):
    load = read_load(folder(tmp_path, *({"0_3": [1, 0, rank]} for rank in range(11))))
    np.testing.assert_array_equal(load.tokens, [[[11, 0, 55]]])


@pytest.mark.parametrize(
    ("meta", "ranks", "message"),
    [
        (None, [{"9_3": [1, 0, 1]}], "cannot be read: No such file"),
        ("{", [{"9_3": [1, 0, 1]}], "meta_info.json: not JSON"),
        ("[3]", [{"9_3": [1, 0, 1]}], r"meta_info.json: \$ is a list: expected an object"),
        ({"num_experts": 3}, [{"9_3": [1, 0, 1]}], r"\$.num_experts_per_token = None: expected an integer >= 1"),
        ({**META, "num_experts": True}, [{"9_3": [1, 0, 1]}], r"\$.num_experts = True: expected an integer"),
        (META, [{"9_3": [1, 0]}], r"rank0.safetensors: tensor '9_3' has shape \(2,\): expected \(3,\)"),
        (META, [{"9_3": [1, 0, 1]}, {"nine_3": [1, 0, 1]}], "rank1.safetensors: tensor 'nine_3': expected a name"),
        (META, [{"9_3": [1, 0, 1], "10_4": [1, 0, 1]}], "no rank has '9_4': expected every layer of 3 to 4"),
        (META, [{"9_3": [1, -1, 1]}], r"tokens\[window 0, layer 0, expert 1\] = -1"),
        (META, [{"9_3": [1.0, np.nan, 1]}], r"tokens\[window 0, layer 0, expert 1\] = nan"),
        (META, [{"9_3": [0, 0, 0]}, {"9_3": [0, 0, 0]}], "every count is zero: an empty recording"),
        (META, [{}], "no file has a tensor: an empty recording"),
        (META, [{"9_3": [2**53 + 1, 0, 0]}], "has the count 9007199254740993: expected at most"),
        (META, [{"9_3": [True, False, True]}], "tensor '9_3' is bool: expected integers or floats"),
        (META, [], "the folder has no rank"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, meta, ranks, message):
    path = folder(tmp_path, *ranks, meta=meta)
    with pytest.raises(InputError, match=message):
        read_load(path, format="trtllm")


def test_a_cut_file_and_other_experts_and_a_trace_are_refused(tmp_path):
    path = folder(tmp_path, {"9_3": [1, 0, 1]})
    with pytest.raises(InputError, match=r"num_experts = 4: meta_info\.json says 3"):
        read_load(path, num_experts=4)
    with pytest.raises(InputError, match=r"TensorRT-LLM statistics, .* holds tokens per expert"):
        read_trace(path)
    file = path / "rank0.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"rank0\.safetensors: not a whole \.safetensors file"):
        read_load(path)


def test_rounded_counts_are_said_to_be(tmp_path, caplog):
    read_load(folder(tmp_path, {"9_3": np.array([2.0**24, 0, 1], dtype=np.float32)}))
    assert "tensor '9_3': float32 counts up to 16777216 have lost their last digits" in caplog.text


def test_without_safetensors_the_extra_is_named_and_torch_is_not_needed(tmp_path, monkeypatch):
    path = folder(tmp_path, {"9_3": [1, 0, 1]})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_load(path).tokens.sum() == 2
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(MissingExtraError, match=r"extra 'trace': .*pip install "):
        read_load(path)
