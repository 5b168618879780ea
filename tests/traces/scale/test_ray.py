"""A real Ray cluster of two workers on this machine, one of which is killed while it counts."""

import functools
import os
import signal
from pathlib import Path

import pytest

from eplb_traces import InputError
from eplb_traces.combine import Combine
from eplb_traces.scale.checkpoint import Checkpoint
from eplb_traces.scale.executors import Threads
from eplb_traces.scale.ray_cluster import ClusterError, ray_cluster
from eplb_traces.scale.reduce import reduce_trace
from eplb_traces.scale.shard_counts import Shard, added, count_shard
from tests.traces.scale.test_reduce import oracle, write_parts

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # ray leaves sockets and processes to the garbage collector
    pytest.mark.skipif(os.environ.get("EPLB_TEST_RAY") != "1", reason="make test-scale starts a Ray cluster"),
]


REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:  # workers import this checkout, and this file
        patch.setenv("PYTHONPATH", os.pathsep.join(str(REPOSITORY / room) for room in ("", "traces", "cli")))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        with ray_cluster("local") as connected:
            yield connected
        ray.shutdown()


def counted_unless_killed(shard, marks):
    """Count a shard; the first worker that gets part 2 is killed half-way, as by the kernel."""
    (Path(marks) / f"{Path(shard.path).stem}-{os.getpid()}-{len(os.listdir(marks))}").touch()
    counts = count_shard(shard)
    killed = Path(marks) / "killed"
    if "part-2" in shard.path and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return counts


def killed_always(case):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(case):
    raise InputError(f"case {case} is refused")


def squared(case):
    return case * case


def test_the_load_is_that_of_the_local_run_although_a_worker_is_killed(cluster, tmp_path):
    paths = write_parts(tmp_path, (5, 6, 7, 0, 8, 3, 2))
    shards = [Shard(path, window=2) for path in paths]
    marks = tmp_path / "marks"
    marks.mkdir()
    kept = []
    total = cluster.map_reduce(
        functools.partial(counted_unless_killed, marks=str(marks)),
        [Shard(path) for path in paths],
        added,
        lambda number, counts: kept.append(number),
    )
    assert (marks / "killed").exists()
    assert len(list(marks.glob("part-2-*"))) >= 2  # it was counted again
    assert sorted(kept) == list(range(7))
    assert total.num_tokens == 31
    assert (total.windows[0] == oracle(paths, Combine.SUM, None).tokens[0]).all()
    for how in (Combine.TIME, Combine.SUM):
        one = reduce_trace(shards, how, cluster, Checkpoint(tmp_path / f"kept {how}"))
        other = reduce_trace(shards, how, Threads(), Checkpoint(tmp_path / f"kept locally {how}"))
        assert one.load == other.load == oracle(paths, how, 2)
        assert one.load.tokens.tobytes() == other.load.tokens.tobytes()


def test_finished_files_are_not_counted_again_on_the_cluster(cluster, tmp_path):
    paths = write_parts(tmp_path, (5, 6, 7))
    kept = Checkpoint(tmp_path / "kept")
    kept.save(Shard(paths[1]), count_shard(Shard(paths[1])))
    done = []
    made = reduce_trace([Shard(path) for path in paths], None, cluster, kept, lambda: done.append(1))
    assert (made.num_resumed, len(done)) == (1, 2)
    assert made.load == oracle(paths, Combine.SUM, None)


def test_results_come_in_the_order_of_the_cases_and_errors_as_they_were_raised(cluster):
    assert cluster.map(squared, list(range(9)), lambda number, result: None) == [n * n for n in range(9)]
    with pytest.raises(InputError, match="case 3 is refused"):
        cluster.map(refused, [3], lambda number, result: None)


def test_a_case_that_kills_every_worker_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr("eplb_traces.scale.ray_cluster.MOST_RETRIES", 1)
    with ray_cluster("local") as again, pytest.raises(ClusterError, match="a worker was lost 2 times"):
        again.map(killed_always, [0], lambda number, result: None)
