"""`eplb trace reduce`: the load of many files on the command line."""

from pathlib import Path

import numpy as np
import pytest

from eplb_traces import read_load
from eplb_traces.combine import Combine
from eplb_traces.scale.checkpoint import Checkpoint
from eplb_traces.scale.shard_counts import Shard, count_shard
from tests.traces.scale.test_reduce import oracle, write_parts

pytest.importorskip("pyarrow")


@pytest.fixture
def paths(tmp_path):
    return write_parts(tmp_path, (5, 6, 7))


def test_the_load_is_that_of_merge_and_no_shard_is_left(run, tmp_path, paths):
    out = tmp_path / "load.npz"
    result = run("trace", "reduce", str(tmp_path / "part-*.parquet"), "-o", out, "--combine", "time", "--window", 2)
    assert result.exit_code == 0, result.stderr
    windows = oracle(paths, Combine.TIME, 2).num_windows
    assert result.stdout == f"wrote {out}\n  18 tokens in 3 files, {windows} windows\n"
    merged = tmp_path / "merged.npz"
    words = ("--combine", "time", "--window", 2, "--load")
    assert run("trace", "merge", *paths, "-o", merged, *words).exit_code == 0
    assert out.read_bytes() == merged.read_bytes()
    assert not (tmp_path / "load.npz.shards").exists()


def test_files_that_were_finished_before_are_not_counted_again(run, tmp_path, paths):
    out, kept = tmp_path / "load.npz", Checkpoint(tmp_path / "load.npz.shards")
    kept.save(Shard(paths[0]), count_shard(Shard(paths[0])))
    whole = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(whole[:-40])
    result = run("trace", "reduce", *paths, "-o", out)
    assert (result.exit_code, out.exists()) == (3, False)
    assert paths[2] in result.stderr
    assert kept.saved(Shard(paths[0])) is not None
    Path(paths[2]).write_bytes(whole)
    result = run("trace", "reduce", *paths, "-o", out)
    assert result.exit_code == 0
    assert "of 3 files had been counted before" in result.stderr
    np.testing.assert_array_equal(read_load(out).tokens, oracle(paths, Combine.SUM, None).tokens)
    assert not kept.folder.exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("-o", "load.txt"), 3, "suffix '.txt' is unknown"),
        (("-o", "load.npz", "--window", "2"), 3, "--combine"),
        (("-o", "load.npz", "--combine", "layers"), 3, "expected time or sum"),
        (("-o", "load.npz", "--combine", "all"), 2, "workloads, sum, time, layers"),
    ],
)
def test_what_is_refused(run, tmp_path, monkeypatch, paths, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    result = run("trace", "reduce", *paths, *words)
    assert result.exit_code == code
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "load.npz").exists()
