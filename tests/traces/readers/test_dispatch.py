import numpy as np
import pytest

from eplb_traces import READERS, ExpertLoad, InputError, ModelShape, read_load, read_trace, write_load, write_trace
from tests.traces.examples import SMALL, random_load, small_trace


def numbered_load():
    """A load whose layers have ids, which SGLang's format needs."""
    tokens = random_load().tokens
    num_layers, num_experts = tokens.shape[1:]
    ids = tuple(range(num_layers))
    return ExpertLoad(
        tokens, shape=ModelShape(num_layers, num_experts, moe_layer_ids=ids, num_hidden_layers=num_layers)
    )


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json", ".parquet"])
def test_content_tells_the_dialect_where_the_suffix_does_not(tmp_path, suffix):
    load = numbered_load()
    write_load(load, tmp_path / f"load{suffix}")
    (tmp_path / f"load{suffix}").rename(tmp_path / "load.dump")
    np.testing.assert_array_equal(read_load(tmp_path / "load.dump").tokens, load.tokens)


@pytest.mark.parametrize("read", [read_load, read_trace])
def test_unknown_names_and_files_are_refused_with_the_list(tmp_path, read):
    (tmp_path / "load.xyz").write_bytes(b"\0\0\0")
    with pytest.raises(InputError, match=r"load.xyz: neither suffix nor content .* parquet, npz, npy, csv, sglang"):
        read(tmp_path / "load.xyz")
    with pytest.raises(InputError, match=r"format 'xls' is unknown: expected one of parquet, npz"):
        read(tmp_path / "load.xyz", format="xls")
    with pytest.raises(InputError, match=r"missing.csv: no such file or folder"):
        read(tmp_path / "missing.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: neither suffix nor content"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("read", [read_load, read_trace])
def test_every_dialect_refuses_a_missing_file_a_folder_and_garbage(tmp_path, format, read):
    with pytest.raises(InputError, match="missing"):
        read(tmp_path / "missing", format=format)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder"):
        read(tmp_path / "folder", format=format)
    (tmp_path / "garbage").write_bytes(b"\x80\x02\xff\0garbage,\n")
    with pytest.raises(InputError, match="garbage"):
        read(tmp_path / "garbage", format=format)


def test_a_token_trace_is_counted_when_a_load_is_asked_for(tmp_path):
    trace = small_trace()
    write_trace(trace, tmp_path / "trace.parquet")
    assert read_load(tmp_path / "trace.parquet") == trace.load()
    assert read_load(str(tmp_path / "trace.parquet"), window=2) == trace.load(2)
    with pytest.raises(InputError, match=f"num_experts = 9: the file has {SMALL.num_experts}"):
        read_load(tmp_path / "trace.parquet", num_experts=9)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".json", ".parquet"])
def test_a_load_is_no_trace(tmp_path, suffix):
    write_load(numbered_load(), tmp_path / f"load{suffix}")
    with pytest.raises(InputError, match="holds tokens per expert, not the choices of single tokens"):
        read_trace(tmp_path / f"load{suffix}")
