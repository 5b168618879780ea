import json
import sys

import numpy as np
import pytest
from hypothesis import given

from eplb_traces import InputError, MissingExtraError, ModelShape, RoutingTrace, read_load, read_trace
from eplb_traces.files import parquet_file
from eplb_traces.files.parquet_file import LOAD_KEY, TRACE_KEY
from eplb_traces.files.writers import write_load, write_trace
from tests.traces.examples import SMALL, assert_same_tokens, random_batch, random_load, small_trace, traces

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@given(traces())
def test_round_trip(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    write_trace(trace, path)
    back = read_trace(path)
    assert back.num_tokens == trace.num_tokens
    assert_same_tokens(back, trace)


@given(traces())
def test_round_trip_of_packed_ids(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    write_trace(trace, path, "packed")
    back = read_trace(path)
    assert back.num_tokens == trace.num_tokens
    assert_same_tokens(back, trace)


@pytest.mark.parametrize(("num_experts", "dtype"), [(256, np.uint8), (257, "<u2"), (512, "<u2")])
def test_a_packed_id_is_one_byte_up_to_256_experts_and_two_beyond(tmp_path, monkeypatch, num_experts, dtype):
    shape = ModelShape(3, num_experts, 4)
    batch = random_batch(np.random.default_rng(0), 25, shape)
    write_trace(RoutingTrace(shape, [batch]), tmp_path / "t.parquet", "packed")
    stored = pq.read_table(tmp_path / "t.parquet").column("expert_ids").to_pylist()
    assert {len(row) for row in stored} == {12 * np.dtype(dtype).itemsize}
    ids = np.array([np.frombuffer(row, dtype) for row in stored]).reshape(25, 3, 4)
    np.testing.assert_array_equal(ids, batch.expert_ids)
    assert batch.expert_ids.max() > num_experts // 2  # the largest ids are there
    monkeypatch.setattr(parquet_file, "_IDS_PER_READ", 10 * 12)  # batches begin inside pyarrow's buffers
    assert_same_tokens(read_trace(tmp_path / "t.parquet"), RoutingTrace(shape, [batch]))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="layout = 'lists': expected one of list, packed"):
        write_trace(small_trace(), tmp_path / "t.parquet", "lists")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "width", "message"),
    [
        ([bytes(12)] * 12, 12, r"column expert_ids is fixed_size_binary\[12\]: expected fixed_size_binary\[6\]"),
        ([bytes(6)] * 12, 6, r"rows from 0: expert_ids\[token 0, layer 0\] = \[0, 0, 0\]: expert 0 is there twice"),
        ([bytes([0, 1, 8] * 2)] * 12, 6, r"rows from 0: expert_ids\[token 0, layer 0\] = 8: expected 0"),
        ([bytes([0, 1, 2] * 2), None] * 6, 6, "rows from 0: expert_ids has 6 nulls: expected none"),
    ],
)
def test_errors_of_packed_ids_are_named(tmp_path, values, width, message):
    path = rewritten(tmp_path / "t.parquet", with_column("expert_ids", pa.array(values, pa.binary(width))))
    with pytest.raises(InputError, match=rf"^[^:]*t\.parquet: .*{message}"):
        read_trace(path).load()


def test_rows_are_read_in_batches_that_share_pyarrows_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "_IDS_PER_READ", 10 * SMALL.num_layers * SMALL.top_k)
    write_trace(small_trace(num_tokens=25), tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    batches = list(trace)
    assert [batch.num_tokens for batch in batches] == [10, 10, 5]
    assert not any(batch.expert_ids.flags.owndata for batch in batches)
    assert trace.load(2) == small_trace(num_tokens=25).load(2)


def test_small_batches_share_row_groups_and_large_ones_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "_IDS_PER_ROW_GROUP", 10 * SMALL.num_layers * SMALL.top_k)
    rng = np.random.default_rng(0)
    batches = [random_batch(rng, size, SMALL) for size in (3, 3, 3, 3, 25, 1)]
    write_trace(RoutingTrace(SMALL, batches), tmp_path / "t.parquet")
    metadata = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 10, 8]
    assert_same_tokens(read_trace(tmp_path / "t.parquet"), RoutingTrace(SMALL, batches))


def test_the_schema_is_the_documented_one(tmp_path):
    write_trace(small_trace(), tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.field("expert_ids").type.value_type == pa.uint16()
    assert schema.field("expert_ids").type.list_size == SMALL.num_layers * SMALL.top_k
    assert json.loads(schema.metadata[TRACE_KEY])["version"] == 1


def test_a_trace_without_tokens_can_be_written_and_read(tmp_path):
    write_trace(small_trace(num_tokens=0), tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.num_tokens == 0
    with pytest.raises(InputError, match="the trace has no tokens"):
        trace.load()


@pytest.mark.parametrize("kept", [0, 3, 100, -1, -100])
@pytest.mark.parametrize("kind", ["trace", "load"])
def test_a_truncated_file_is_refused(tmp_path, kept, kind):
    path = tmp_path / "t.parquet"
    write_trace(small_trace(), path) if kind == "trace" else write_load(random_load(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"t\.parquet: not a whole Parquet file"):
        read_load(path)


def test_damaged_pages_are_refused_when_they_are_read(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(small_trace(num_tokens=2000), path)
    content = bytearray(path.read_bytes())
    content[50:2000] = bytes(1950)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.parquet: not a whole Parquet file"):
        read_trace(path).load()


def rewritten(path, change):
    """Change the table of a good trace; what comes out is good Parquet and a bad trace."""
    write_trace(small_trace(), path)
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    return path


def with_metadata(**changes):
    def change(table):
        fields = json.loads(table.schema.metadata[TRACE_KEY]) | changes
        return table.replace_schema_metadata({TRACE_KEY: json.dumps(fields)})

    return change


def with_column(name, values):
    def change(table):
        return table.set_column(table.schema.get_field_index(name), pa.field(name, values.type), values)

    return change


FIELDS = {"num_layers": 2, "num_experts": 8, "top_k": 3, "num_expert_groups": 1, "top_k_groups": None}
FIELDS |= {"moe_layer_ids": None, "num_hidden_layers": None}
IDS_TYPE = pa.list_(pa.uint16(), 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_metadata(version=2), "expected an object of version 1"),
        (with_metadata(shape=None), r"\$.shape is a NoneType: expected an object"),
        (with_metadata(shape={}), r"\$.shape has the keys \[\]: expected"),
        (with_metadata(shape=FIELDS | {"num_layers": "2"}), r"\$.shape.num_layers = '2': expected an integer"),
        (with_metadata(shape=FIELDS | {"moe_layer_ids": 3}), r"\$.shape.moe_layer_ids = 3: expected a list or null"),
        (with_metadata(shape=FIELDS | {"moe_layer_ids": [1, 1.5]}), r"\$.shape.moe_layer_ids\[1\] = 1.5"),
        (with_metadata(shape=FIELDS | {"top_k": None}), r"\$.shape.top_k = null: expected an integer"),
        (with_metadata(shape=FIELDS | {"top_k": 2}), r"column expert_ids is fixed_size_list.*\[6\]: expected .*\[4\]"),
        (with_metadata(domain_names=[1]), r"\$.domain_names = \[1\]: expected a list of strings"),
        (lambda table: table.replace_schema_metadata({TRACE_KEY: b"{"}), "metadata 'eplb.routing_trace' is not JSON"),
        (lambda table: table.drop_columns(["step"]), "no column 'step': expected expert_ids, step, request"),
        (with_column("step", pa.array([1.0] * 12)), "column step is double: expected int64"),
        (with_column("step", pa.array([1, None] * 6)), "rows from 0: step has 6 nulls: expected none"),
        (with_column("expert_ids", pa.array([[0] * 6] * 12, IDS_TYPE)), r"rows from 0: .*expert 0 is there twice"),
        (with_column("expert_ids", pa.array([[0, 1, 8] * 2] * 12, IDS_TYPE)), r"\[token 0, layer 0\] = 8: expected 0"),
    ],
)
def test_errors_of_a_trace_are_named(tmp_path, change, message):
    path = rewritten(tmp_path / "t.parquet", change)
    with pytest.raises(InputError, match=rf"^[^:]*t\.parquet: .*{message}"):
        read_trace(path).load()


def test_any_table_with_the_long_forms_columns_is_a_load(tmp_path):
    table = {"window": [0, 0], "layer": [0, 1], "expert": [1, 0], "tokens": [3, 4], "extra": ["a", "b"]}
    pq.write_table(pa.table(table), tmp_path / "load.parquet")
    np.testing.assert_array_equal(read_load(tmp_path / "load.parquet", num_experts=2).tokens, [[[0, 3], [4, 0]]])


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({"tokens": [1.0, np.nan]}, None, "row 1, column tokens = nan: expected a finite number >= 0"),
        ({"tokens": ["a", "b"]}, None, "row 0, column tokens = 'a': expected a finite number >= 0"),
        ({"tokens": [1, None]}, None, "row 1, column tokens is null: expected a value"),
        ({"layer": [0, -1]}, None, "row 1, column layer = -1: expected an integer >= 0"),
        ({"tokens": [1.0, np.nan]}, {"weights": [1.0]}, "= nan: expected finite and >= 0"),
        ({"tokens": ["a", "b"]}, {"weights": [1.0]}, "column tokens is string: expected numbers"),
        ({"tokens": [1, None]}, {"weights": [1.0]}, "tokens has 1 nulls: expected none"),
        ({"layer": [0, -1]}, {"weights": [1.0]}, "row 1: layer = -1: expected an integer >= 0"),
        ({"layer": [0, 2]}, {"weights": [1.0]}, "row 1: layer = 2: expected 0 to 1"),
        ({}, {"weights": 1}, r"\$.weights = 1: expected a list of numbers"),
        ({}, {"weights": [1.0], "labels": [3]}, r"\$.labels = \[3\]: expected a list of strings"),
    ],
)
def test_errors_of_a_load_are_named(tmp_path, changes, metadata, message):
    columns = {"window": [0, 0], "layer": [0, 1], "expert": [1, 0], "tokens": [3.0, 4.0], **changes}
    table = pa.table(columns)
    if metadata is not None:
        header = {"version": 1, "shape": FIELDS, **metadata}
        table = table.replace_schema_metadata({LOAD_KEY: json.dumps(header)})
    pq.write_table(table, tmp_path / "load.parquet")
    with pytest.raises(InputError, match=rf"load\.parquet: .*{message}"):
        read_load(tmp_path / "load.parquet")


def test_an_unrelated_table_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="header a: expected layer, expert, tokens"):
        read_load(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"the schema has no metadata 'eplb.routing_trace'"):
        parquet_file.read_parquet_trace(tmp_path / "a.parquet")


def test_batches_with_different_columns_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    trace = RoutingTrace(SMALL, [random_batch(rng, 3, SMALL, optional=True), random_batch(rng, 3, SMALL)])
    with pytest.raises(InputError, match="a batch has no source_rank: the first batch of the trace has it"):
        write_trace(trace, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="the trace has no tokens"):
        write_trace(RoutingTrace(ModelShape(1, 2, 1), []), tmp_path / "t.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for act in (
        lambda: read_load(tmp_path / "t.parquet"),
        lambda: write_trace(small_trace(), tmp_path / "t.parquet"),
        lambda: write_load(random_load(), tmp_path / "t.parquet"),
    ):
        with pytest.raises(MissingExtraError, match=r"Parquet needs the extra 'trace': .*pip install .*"):
            act()
