from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from eplb_traces import LOAD_WRITERS, ExpertLoad, InputError, ModelShape, read_load, write_load, write_trace
from tests.traces.examples import loads, random_load, small_trace


def without_weights(load, path):
    """The load with windows that count once each; with other weights it is refused."""
    if (load.weights == 1).all():
        return load
    with pytest.raises(InputError, match=r"windows have weights, which a \.\w+ does not hold"):
        write_load(load, path)
    assert not path.exists()
    return ExpertLoad(load.tokens, None, load.labels or None, load.shape)


@pytest.mark.parametrize(("suffix", "number"), [(".csv", ", the number of all layers"), (".json", "")])
def test_what_a_format_does_not_hold_is_named(tmp_path, suffix, number, caplog):
    shape = ModelShape(1, 4, 2, num_expert_groups=2, moe_layer_ids=(0,), num_hidden_layers=1)
    plain = replace(shape, top_k=None, num_expert_groups=1, num_hidden_layers=1 if suffix == ".json" else None)
    write_load(ExpertLoad([[1, 2, 3, 4]], shape=plain), tmp_path / f"a{suffix}")
    assert caplog.text == ""
    write_load(ExpertLoad([[1, 2, 3, 4]], labels=["noon"], shape=shape), tmp_path / f"b{suffix}")
    lost = f"labels of windows, choices a token (top_k), expert groups{number}"
    assert f"a {suffix} does not hold {lost}: write" in caplog.text


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@given(load=loads())
def test_npz_and_parquet_lose_nothing(tmp_path_factory, suffix, load):
    path = tmp_path_factory.mktemp("load") / f"load{suffix}"
    write_load(load, path)
    assert read_load(path) == load


@given(load=loads())
def test_csv_keeps_counts_and_layer_ids_or_is_refused(tmp_path_factory, load):
    path = tmp_path_factory.mktemp("load") / "load.csv"
    load = without_weights(load, path)
    if load.shape.moe_layer_ids is None or load.tokens.any(axis=(0, 2)).all():
        write_load(load, path)
        back = read_load(path)
        np.testing.assert_array_equal(back.tokens, load.tokens)
        assert back.shape.moe_layer_ids == load.shape.moe_layer_ids
    else:
        with pytest.raises(InputError, match=r"has no tokens, and a \.csv does not tell it from a dense layer"):
            write_load(load, path)


@given(load=loads())
def test_sglang_json_keeps_counts_and_layer_ids_or_is_refused(tmp_path_factory, load):
    path = tmp_path_factory.mktemp("load") / "load.json"
    load = without_weights(load, path)
    shape = load.shape
    if shape.num_hidden_layers is None or (shape.moe_layer_ids is None and shape.num_hidden_layers != shape.num_layers):
        with pytest.raises(InputError, match=r"a row for every layer of the model.*: give .*--(moe|hidden)-layers"):
            write_load(load, path)
    elif load.tokens.any(axis=(0, 2)).all() and load.tokens.any(axis=(1, 2)).all():
        write_load(load, path)
        ids = shape.moe_layer_ids or tuple(range(shape.num_layers))  # dense rows at odd places look like holes
        back = read_load(path, moe_layer_ids=ids, num_hidden_layers=shape.num_hidden_layers)
        np.testing.assert_array_equal(back.tokens, load.tokens)
        assert back.shape.moe_layer_ids == ids
        assert back.shape.num_hidden_layers == shape.num_hidden_layers
    else:
        with pytest.raises(InputError, match="has no tokens: SGLang's format would"):
            write_load(load, path)


def test_sglang_json_has_the_keys_that_sglang_reads(tmp_path):
    shape = ModelShape(2, 2, moe_layer_ids=(1, 3), num_hidden_layers=5)
    write_load(ExpertLoad([[1, 2.5], [3, 4]], shape=shape), tmp_path / "load.json")
    text = (tmp_path / "load.json").read_text()
    assert text == '{"logical_count":[[0,0],[1,2.5],[0,0],[3,4],[0,0]]}'


def test_csv_is_the_wide_form(tmp_path):
    write_load(ExpertLoad([[[0, 2], [3.5, 0]]]), tmp_path / "load.csv")
    assert (tmp_path / "load.csv").read_text() == "moe_layer,0,1\n0,0,2\n1,3.5,0\n"
    shape = ModelShape(2, 2, moe_layer_ids=(1, 3))
    write_load(ExpertLoad([[[0, 2], [3.5, 0]]] * 2, shape=shape), tmp_path / "load.csv")
    rows = "0,1,0,2\n0,3,3.5,0\n1,1,0,2\n1,3,3.5,0\n"
    assert (tmp_path / "load.csv").read_text() == "window,layer,0,1\n" + rows


@pytest.mark.parametrize("suffix", LOAD_WRITERS)
def test_the_same_load_gives_the_same_bytes(tmp_path, suffix):
    load = random_load()
    all_moe = replace(load.shape, moe_layer_ids=range(load.num_layers), num_hidden_layers=load.num_layers)
    for name in "ab":
        write_load(ExpertLoad(load.tokens, shape=all_moe), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_unknown_suffixes_are_refused_with_the_list(tmp_path):
    with pytest.raises(InputError, match=r"suffix '.xls' is unknown: expected one of .npz, .csv, .json, .parquet"):
        write_load(random_load(), tmp_path / "load.xls")
    with pytest.raises(InputError, match=r"trace.csv: a trace is written as .parquet"):
        write_trace(small_trace(), tmp_path / "trace.csv")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".npz", ".parquet"])
def test_counts_beyond_2_to_the_53_are_written_so_that_they_are_read(tmp_path, suffix):
    shape = ModelShape(1, 3, moe_layer_ids=(0,), num_hidden_layers=1)
    load = ExpertLoad([[3.16e22, 7.0, 2.0**60]], shape=shape)
    write_load(load, tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_load(tmp_path / f"a{suffix}").tokens, load.tokens)
