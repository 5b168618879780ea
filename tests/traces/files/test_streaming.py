"""A trace in Parquet is read as a stream: memory does not grow with the file, nor with its row groups."""

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, RoutingTrace, TokenBatch, read_trace
from eplb_traces.combine import Combine, combine_traces
from eplb_traces.files import parquet_file
from eplb_traces.files.writers import write_trace
from tests.traces.examples import SMALL, random_batch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

WIDE = ModelShape(16, 1 << 16, 1)
MEBIBYTE = 1 << 20


@pytest.fixture
def small_reads(monkeypatch):
    monkeypatch.setattr(parquet_file, "_IDS_PER_READ", 1 << 16)
    monkeypatch.setattr(parquet_file, "_BYTES_PER_READ", 1 << 16)


def write_16_mebibytes(path, rows_per_group):
    """2^19 tokens x 16 ids of two bytes; random, so that they are 16 MiB in the file too."""
    num_tokens = 1 << 19
    ids = np.random.default_rng(0).integers(0, 1 << 16, (num_tokens, 16, 1), dtype=np.uint16)
    batch = TokenBatch(WIDE, ids, np.arange(num_tokens), np.arange(num_tokens))
    write_trace(RoutingTrace(WIDE, [batch]), path)
    pq.write_table(pq.read_table(path), path, row_group_size=rows_per_group)
    assert path.stat().st_size > 16 * MEBIBYTE


@pytest.mark.parametrize("rows_per_group", [1 << 14, 1 << 19])
def test_memory_grows_neither_with_the_file_nor_with_its_row_groups(tmp_path, small_reads, rows_per_group):
    path = tmp_path / "t.parquet"
    write_16_mebibytes(path, rows_per_group)
    trace = read_trace(path)
    before = pa.total_allocated_bytes()
    held, num_tokens = [], 0
    for batch in trace:
        held.append(pa.total_allocated_bytes() - before)
        num_tokens += batch.num_tokens
    assert num_tokens == 1 << 19
    assert max(held) < 8 * MEBIBYTE


def test_the_sample_of_the_traffic_strategy_does_not_hold_the_batches():
    from eplb.strategies.traffic.traffic import _choices

    rng = np.random.default_rng(0)
    trace = RoutingTrace(SMALL, [random_batch(rng, 40, SMALL) for _ in range(5)])
    chosen = _choices(trace, 20)
    assert chosen.nbytes <= 20 * SMALL.num_layers * SMALL.top_k * 2
    assert np.array_equal(chosen, np.concatenate([batch.expert_ids for batch in trace])[::10])


@pytest.mark.parametrize("how", [Combine.TIME, Combine.SUM])
@pytest.mark.parametrize("name", ["step", "request"])
def test_a_column_alone_is_that_of_the_batches(tmp_path, monkeypatch, how, name):
    monkeypatch.setattr(parquet_file, "_ROWS_PER_COLUMN_READ", 3)
    rng = np.random.default_rng(1)
    traces = []
    for i in range(3):
        path = tmp_path / f"{i}.parquet"
        write_trace(RoutingTrace(SMALL, [random_batch(rng, size, SMALL) for size in (5, 4)]), path)
        traces.append(read_trace(path))
    together = combine_traces(traces, ["a", "b", "c"], how)
    for trace in (*traces, together, together.select_steps(0, 3)):
        alone = np.concatenate([*trace.column(name), np.empty(0, np.int64)])
        assert np.array_equal(alone, np.concatenate([getattr(batch, name) for batch in trace]))


def test_steps_are_read_without_the_choices(tmp_path, monkeypatch):
    write_trace(RoutingTrace(SMALL, [random_batch(np.random.default_rng(2), 9, SMALL)]), tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    expected = np.unique(np.concatenate([batch.step for batch in trace]))
    monkeypatch.setattr(parquet_file, "_token_batch", None)  # any batch that is read fails
    assert np.array_equal(trace.steps, expected)


def test_a_column_of_negative_numbers_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(RoutingTrace(SMALL, [random_batch(np.random.default_rng(3), 4, SMALL)]), path)
    table = pq.read_table(path)
    at = table.schema.get_field_index("step")
    negative = table.set_column(at, table.schema.field("step"), pa.array([0, 1, -5, 2], pa.int64()))
    pq.write_table(negative.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(InputError, match=r"step\[token 2\] = -5"):
        _ = read_trace(path).steps
