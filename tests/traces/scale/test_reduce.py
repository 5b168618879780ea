"""The load of many files is that of the whole trace, whatever the order in which the files are counted."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_traces import InputError, ModelShape, RoutingTrace, read_load, read_trace
from eplb_traces.combine import Combine, combine_traces
from eplb_traces.files.writers import write_load, write_trace
from eplb_traces.scale.checkpoint import Checkpoint
from eplb_traces.scale.executors import InOrder, Threads
from eplb_traces.scale.reduce import files_of, reduce_trace
from eplb_traces.scale.shard_counts import Shard, StoppedError, added, count_shard
from tests.traces.examples import SMALL, random_batch, random_load

pytest.importorskip("pyarrow")


def write_parts(folder, sizes, seed=0):
    """A file for each size; steps from 2 on, so that the first one is not 0."""
    rng = np.random.default_rng(seed)
    paths = []
    for i, size in enumerate(sizes):
        batch = random_batch(rng, size, SMALL, num_steps=7)
        paths.append(str(folder / f"part-{i}.parquet"))
        write_trace(RoutingTrace(SMALL, [replace(batch, step=batch.step + 2)]), paths[-1])
    return paths


def oracle(paths, how, window):
    """All files read one after the other as one trace."""
    return combine_traces([read_trace(path) for path in paths], paths, how).load(window)


class InTurn:
    """Runs the cases in a given order in this thread."""

    stopped = staticmethod(lambda: False)

    def __init__(self, order):
        self.order = order

    def map(self, function, cases, on_done):
        return [function(case) for case in cases]

    def map_reduce(self, function, cases, merge, on_done):
        merged = None
        for number in [i for i in self.order if i < len(cases)]:
            result = function(cases[number])
            on_done(number, result)
            merged = result if merged is None else merge(result, merged)
        return merged


@pytest.mark.parametrize("how", [Combine.TIME, Combine.SUM])
@settings(max_examples=15)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=5), st.one_of(st.none(), st.integers(1, 9)), st.randoms())
def test_the_load_is_that_of_the_whole_trace_in_any_order(tmp_path_factory, how, sizes, window, random):
    sizes[random.randrange(len(sizes))] = 5  # some tokens
    folder = tmp_path_factory.mktemp("parts")
    paths = write_parts(folder, sizes, seed=sum(sizes))
    order = list(range(len(sizes)))
    random.shuffle(order)
    shards = [Shard(path, window=window) for path in paths]
    for executor in (InTurn(order), Threads()):
        made = reduce_trace(shards, how, executor, Checkpoint(folder / f"kept {type(executor).__name__}"))
        assert made.load == oracle(paths, how, window)
        assert (made.num_tokens, made.num_resumed) == (sum(sizes), 0)


def test_a_run_continues_from_the_finished_files(tmp_path):
    paths = write_parts(tmp_path, (5, 6, 7))
    kept = Checkpoint(tmp_path / "kept")
    shards = [Shard(path, window=2) for path in paths]
    counted = []

    def fails_after_two():
        counted.append(1)
        if len(counted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reduce_trace(shards, Combine.SUM, InTurn([2, 0, 1]), kept, fails_after_two)
    again = []
    made = reduce_trace(shards, Combine.SUM, Threads(), kept, lambda: again.append(1))
    assert made.load == oracle(paths, Combine.SUM, 2)
    assert (made.num_tokens, made.num_resumed, len(again)) == (18, 2, 1)
    kept.remove()
    assert not kept.folder.exists()


def test_counts_of_a_changed_file_a_damaged_one_or_another_window_are_not_used(tmp_path):
    path = write_parts(tmp_path, (5,))[0]
    kept, shard = Checkpoint(tmp_path / "kept"), Shard(path)
    counts = count_shard(shard)
    kept.save(shard, counts)
    assert kept.saved(shard) is not None
    assert kept.saved(replace(shard, window=2, first_step=0)) is None
    file = next(kept.folder.iterdir())
    whole = file.read_bytes()
    for damaged in (b"", whole[:-9], whole[:60] + bytes(9) + whole[69:]):
        file.write_bytes(damaged)
        assert kept.saved(shard) is None
    file.write_bytes(whole)
    assert kept.saved(shard).num_tokens == 5
    os.utime(path, ns=(1, 1))
    assert kept.saved(shard) is None


def test_files_of_another_model_are_refused_by_name(tmp_path):
    first = write_parts(tmp_path, (5,))[0]
    other, path = ModelShape(2, 9, 3), str(tmp_path / "x.parquet")
    write_trace(RoutingTrace(other, [random_batch(np.random.default_rng(0), 4, other)]), path)
    shards = [Shard(first), Shard(path)]
    with pytest.raises(InputError, match=r"(x|part-0)\.parquet: experts = "):
        reduce_trace(shards, None, Threads(), Checkpoint(tmp_path / "kept"))
    with pytest.raises(InputError, match="experts = 8"):
        added(count_shard(shards[0]), count_shard(shards[1]))


def test_windows_of_several_files_need_a_word_on_their_steps(tmp_path):
    paths = write_parts(tmp_path, (5, 6))
    kept = Checkpoint(tmp_path / "kept")
    with pytest.raises(InputError, match=r"--combine\) = time"):
        reduce_trace([Shard(path, window=2) for path in paths], None, Threads(), kept)
    with pytest.raises(InputError, match="combine = layers: expected time or sum"):
        reduce_trace([Shard(path) for path in paths], Combine.LAYERS, Threads(), kept)
    with pytest.raises(InputError, match="window = 0"):
        reduce_trace([Shard(path, window=0) for path in paths], Combine.SUM, Threads(), kept)
    assert reduce_trace([Shard(paths[0], window=2)], None, Threads(), kept).load == read_load(paths[0], window=2)


def test_loads_and_missing_files_are_refused(tmp_path):
    write_load(random_load(), tmp_path / "load.npz")
    with pytest.raises(InputError, match=r"load\.npz"):
        reduce_trace([Shard(str(tmp_path / "load.npz"))], None, Threads(), Checkpoint(tmp_path / "kept"))
    with pytest.raises(InputError, match=r"none-\*: no such file"):
        files_of([str(tmp_path / "none-*")])
    (tmp_path / "kept").touch()
    path = write_parts(tmp_path, (5,))[0]
    with pytest.raises(InputError, match=r"cannot write .*kept: File exists"):
        reduce_trace([Shard(path)], None, Threads(), Checkpoint(tmp_path / "kept"))


def test_one_case_after_the_other_gives_what_threads_give():
    done = []
    found = InOrder().map_reduce(abs, [-3, 4, -5], max, lambda number, result: done.append((number, result)))
    assert (found, done) == (5, [(0, 3), (1, 4), (2, 5)])
    assert Threads().map_reduce(abs, [-3, 4, -5], max, lambda number, result: None) == found


def test_patterns_give_files_in_order_and_each_once(tmp_path):
    paths = write_parts(tmp_path, (1, 1, 1))
    assert files_of([str(tmp_path / "part-*")]) == paths
    assert files_of([paths[2], paths[0]]) == [paths[2], paths[0]]
    with pytest.raises(InputError, match=r"part-1\.parquet is named twice"):
        files_of([paths[1], str(tmp_path / "*.parquet")])
    os.link(paths[1], tmp_path / "hard.parquet")
    (tmp_path / "soft.parquet").symlink_to(paths[1])
    for other in (f"{tmp_path}/./part-1.parquet", tmp_path / "hard.parquet", tmp_path / "soft.parquet"):
        with pytest.raises(InputError, match=r"\.parquet is named twice, also as .*part-1\.parquet: its tokens would"):
            files_of([paths[0], paths[1], str(other)])


def test_an_error_stops_the_counts_that_still_run(tmp_path, monkeypatch):
    path = write_parts(tmp_path, (5,))[0]
    with pytest.raises(StoppedError):
        count_shard(Shard(path), stopped=lambda: True)
    threads, both_run = Threads(), threading.Barrier(2, timeout=60)

    def fails_or_waits(case):
        both_run.wait()
        if case == 0:
            raise InputError("first")
        while not threads.stopped():
            pass
        return case

    monkeypatch.setattr("eplb_traces.scale.executors.usable_cores", lambda: 2)
    with pytest.raises(InputError, match="first"):
        threads.map(fails_or_waits, [0, 1], lambda number, result: None)
