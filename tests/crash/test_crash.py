"""Writers that are killed, have no room or write at the same time: the old files, the new ones, or a recognisable rest.

`EPLB_LONG_TESTS=1` kills 200 times for each writer and state, otherwise `QUICK` times.
"""

import dataclasses
import gc
import os
import random
import resource
import signal

import pytest

import eplb
from eplb.errors import InputError
from eplb.formats import RecordStatus, parse_file
from eplb.formats.sidecar import sidecar_path
from eplb.report import folder as report_folder
from eplb_traces import ExpertLoad, ModelShape, write_load, write_trace
from tests.crash.kill import forked, killed_at, num_steps
from tests.traces.examples import small_trace

LONG = "EPLB_LONG_TESTS" in os.environ
QUICK = 14
KILLS = 200 if LONG else QUICK
TOPOLOGY = eplb.Topology(1, 2, 3)
SHAPE = ModelShape(2, 4, moe_layer_ids=(0, 1), num_hidden_layers=2)
LOADS = [
    ExpertLoad([[9.0, 3, 2, 2], [1, 2, 3, 4]], shape=SHAPE),
    ExpertLoad([[1.0, 1, 2, 9], [4, 4, 1, 1]], shape=SHAPE),
]
OLD, NEW = (eplb.plan(load, TOPOLOGY, "greedy") for load in LOADS)
SAME_MAP = dataclasses.replace(OLD, seed=7, notes=("another record of the same map",))
ENGINES = {
    "sglang": ".json",
    "trtllm": ".yaml",
    "ascend": ".json",
    "deepseek": ".npz",
    "vllm": ".json",
    "native": ".json",
}
LOAD_SUFFIXES = [".npz", ".csv", ".json", pytest.param(".parquet", marks=pytest.mark.slow)]


def files(folder):
    """{name: bytes}, without what interrupted writes left."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def points(work, seed):
    """Random steps of `work` at which it is killed: over the whole, and among its last, where files are renamed."""
    rng, total = random.Random(seed), num_steps(work)
    return [rng.randrange(total) for _ in range(KILLS // 2)] + [
        rng.randrange(max(0, total - 120), total) for _ in range(KILLS - KILLS // 2)
    ]


def test_steps_are_the_same_when_the_garbage_collector_runs():
    def work():
        return [[] for _ in range(5000)].clear()

    def callback(phase, info):
        """As Hypothesis has one, for its clock."""

    expected = num_steps(work)
    gc.callbacks.append(callback)
    try:
        assert num_steps(work) == expected
    finally:
        gc.callbacks.remove(callback)


def test_a_writer_that_is_not_atomic_is_caught(tmp_path):
    def careless():
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"new")

    states = [{"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"}]
    seen = []
    for at in range(num_steps(careless)):
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"old")
        assert killed_at(careless, at)
        seen.append(files(tmp_path))
    assert {"a": b"", "b": b"old"} in seen
    assert {"a": b"new", "b": b"old"} in seen
    assert not all(found in states for found in seen)


@pytest.mark.parametrize("new", [NEW, SAME_MAP], ids=["another map", "the same map"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_plan_and_its_sidecar(tmp_path, name, new):
    path = tmp_path / f"plan{ENGINES[name]}"
    states = []
    for plan in (new, OLD):  # the old pair is there when the new one is written
        eplb.write_placement(plan, path, name)
        states.append(files(tmp_path))
    seen = set()
    for at in points(lambda: eplb.write_placement(new, path, name), name):
        assert killed_at(lambda: eplb.write_placement(new, path, name), at)
        found = files(tmp_path)
        seen.add(states.index(found) if found in states else 2)
        if found not in states:
            assert found[path.name] == states[0][path.name]
            assert parse_file(path, name).record_status is RecordStatus.STALE
        eplb.write_placement(OLD, path, name)
        assert {each.name for each in tmp_path.iterdir()} == set(states[1])  # nothing is left
    assert seen >= {0, 1} or not LONG


@pytest.mark.parametrize("name", ["sglang", "native"])
def test_the_first_plan(tmp_path, name):
    path = tmp_path / f"plan{ENGINES[name]}"
    eplb.write_placement(NEW, path, name)
    whole = files(tmp_path)
    for at in points(lambda: eplb.write_placement(NEW, path, name), name):
        for each in tmp_path.iterdir():
            each.unlink()
        killed_at(lambda: eplb.write_placement(NEW, path, name), at)
        found = files(tmp_path)
        assert found in ({}, whole) or found == {path.name: whole[path.name]}
        if found and found != whole:
            assert parse_file(path, name).record_status is RecordStatus.ABSENT


@pytest.mark.parametrize("suffix", LOAD_SUFFIXES)
def test_a_load(tmp_path, suffix):
    path = tmp_path / f"load{suffix}"
    states = []
    for load in LOADS:
        write_load(load, path)
        states.append(files(tmp_path))
    for at in points(lambda: write_load(LOADS[0], path), suffix):
        killed_at(lambda: write_load(LOADS[0], path), at)
        assert files(tmp_path) in states
        write_load(LOADS[1], path)
        assert os.listdir(tmp_path) == [path.name]


@pytest.mark.slow
def test_a_trace(tmp_path):
    path = tmp_path / "trace.parquet"
    write_trace(small_trace(), path)
    whole = files(tmp_path)
    for at in points(lambda: write_trace(small_trace(), path), 0):
        killed_at(lambda: write_trace(small_trace(), path), at)
        assert files(tmp_path) == whole


def test_a_report_folder_is_whole_if_it_has_its_page(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report_folder, "report_figures", lambda *_: [])  # drawing takes seconds
    contents = [eplb.report.gather(load, {}, TOPOLOGY, strategy="linear", title="load") for load in LOADS]
    details = report_folder.layer_details(contents[0], ())
    monkeypatch.setattr(report_folder, "layer_details", lambda *_: details)
    states = []
    for content in contents:
        report_folder.write_folder(content, tmp_path)
        states.append(files(tmp_path))
    seen = set()
    for at in points(lambda: report_folder.write_folder(contents[0], tmp_path), 0):
        killed_at(lambda: report_folder.write_folder(contents[0], tmp_path), at)
        found = files(tmp_path)
        assert found in states or report_folder.PAGE not in found
        seen.add(report_folder.PAGE in found)
        report_folder.write_folder(contents[1], tmp_path)
    assert seen == {True, False}


@pytest.mark.parametrize("limit", [0, 1, 100, 300])
@pytest.mark.parametrize("name", ["sglang", "native"])
def test_no_room_for_the_files_leaves_the_old_ones(tmp_path, name, limit):
    path = tmp_path / "plan.json"
    eplb.write_placement(OLD, path, name)
    before = files(tmp_path)

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            eplb.write_placement(NEW, path, name)
        except InputError as error:
            return 3 if "File too large" in str(error) else 4
        return 0

    assert forked(write) == 3
    assert files(tmp_path) == before
    assert set(os.listdir(tmp_path)) == set(before)


def test_a_file_that_is_converted_in_place(tmp_path):
    path = tmp_path / "plan.json"
    eplb.write_placement(OLD, path, "sglang")
    eplb.convert(path, path, to="native")
    assert eplb.read_placement(path) == OLD.placement
    load = tmp_path / "load.npz"
    write_load(LOADS[0], load)
    write_load(eplb.read_load(load), load)
    assert eplb.read_load(load) == LOADS[0]


def test_a_folder_that_takes_no_files(tmp_path):
    with pytest.raises(InputError, match=r"cannot write /proc/plan\.json"):
        eplb.write_placement(OLD, "/proc/plan.json")
    with pytest.raises(InputError, match=r"cannot write .*missing/plan\.json"):
        eplb.write_placement(OLD, tmp_path / "missing" / "plan.json")


def test_two_writers_at_once_leave_one_plan_and_no_mixed_pair(tmp_path):
    path, rounds = tmp_path / "plan.json", 200 if LONG else 40
    states = []
    for plan in (OLD, NEW):
        eplb.write_placement(plan, path, "sglang")
        states.append(files(tmp_path))

    def write_both():
        """The other process writes NEW while this one writes OLD."""
        other = os.fork()
        for _ in range(rounds):
            eplb.write_placement(NEW if other == 0 else OLD, path, "sglang")
        if other == 0:
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])

    assert forked(write_both) == 0
    found = files(tmp_path)
    assert found[path.name] in [state[path.name] for state in states]
    is_pair = found in states
    assert parse_file(path, "sglang").record_status is (RecordStatus.IN_SIDECAR if is_pair else RecordStatus.STALE)
    assert set(os.listdir(tmp_path)) == {path.name, sidecar_path(path).name}
