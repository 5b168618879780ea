"""Every reader and writer takes the URL of an object store: fsspec's memory, and S3 by a server on this machine."""

import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

import eplb
from eplb.formats import read_plan, write_plan
from eplb_traces import ExpertLoad, InputError, MissingExtraError, ModelShape, read_load, read_trace
from eplb_traces.combine import Combine
from eplb_traces.files.atomic_file import atomic_write
from eplb_traces.files.remote import borrowed, local_copy, matching, stamp, url_of
from eplb_traces.files.writers import LOAD_WRITERS, write_load, write_trace
from eplb_traces.scale.checkpoint import Checkpoint
from eplb_traces.scale.executors import Threads
from eplb_traces.scale.reduce import files_of, reduce_trace
from eplb_traces.scale.shard_counts import Shard
from tests.traces.examples import assert_same_tokens, random_load, small_trace
from tests.traces.scale.test_reduce import oracle, write_parts

fsspec = pytest.importorskip("fsspec")
# The server and the client of S3 leave sockets to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::Warning:s3fs")]


LAYERS = ModelShape(3, 4, 1, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)
WITH_LAYER_IDS = ExpertLoad(random_load().tokens, shape=LAYERS)


@pytest.fixture(scope="module")
def s3_endpoint():
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def store(request, monkeypatch):
    """The URL of an empty folder of a store."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(variable, "of-a-test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"{request.param}://{name}/a"


def names_in(store):
    system, inside = fsspec.core.url_to_fs(store)
    system.invalidate_cache()
    return sorted(found.rpartition("/")[2] for found in system.find(inside))


def test_what_is_a_url():
    assert url_of(Path("s3://bucket/a/b.npz")) == "s3://bucket/a/b.npz"
    assert url_of("memory://x") == "memory://x"
    assert url_of(Path("file:///tmp/x")) == "file:///tmp/x"
    assert [url_of(path) for path in ("a/b", "/a:/b", "sample:moe-435m", "C:/x", Path("x.npz"))] == [None] * 5


@pytest.mark.parametrize("suffix", list(LOAD_WRITERS))
def test_a_load_of_every_format_comes_back(store, suffix):
    pytest.importorskip("pyarrow")
    load = random_load()
    if suffix == ".json":
        load = WITH_LAYER_IDS
    url = f"{store}/load{suffix}"
    write_load(load, url)
    np.testing.assert_array_equal(read_load(url, **({} if suffix != ".csv" else {"window": 1})).tokens, load.tokens)
    np.testing.assert_array_equal(read_load(Path(url)).tokens, load.tokens)
    assert names_in(store) == [f"load{suffix}"]


def test_a_trace_comes_back_and_can_be_read_again(store):
    pytest.importorskip("pyarrow")
    write_trace(small_trace(), f"{store}/t.parquet")
    trace = read_trace(f"{store}/t.parquet")
    assert_same_tokens(trace, small_trace())
    assert_same_tokens(trace, small_trace())


@pytest.mark.parametrize(("format", "suffix"), [("native", ".json"), ("sglang", ".json"), ("ascend", ".json")])
def test_a_plan_comes_back_with_its_record(store, format, suffix):
    plan = eplb.plan(WITH_LAYER_IDS, eplb.Topology(1, 2, 3))
    url = f"{store}/plan{suffix}"
    write_plan(plan, url, format)
    back = read_plan(url, format)
    assert back.placement == plan.placement
    assert back.strategy == plan.strategy
    assert names_in(store) == [f"plan{suffix}"] if format == "native" else [f"plan{suffix}", f"plan{suffix}.eplb.json"]


def test_a_changed_object_is_read_anew(store):
    url = f"{store}/x.txt"
    atomic_write(url, b"one")
    first = stamp(url)
    assert local_copy(url).read_bytes() == b"one"
    assert local_copy(url) == local_copy(url)
    atomic_write(url, b"other")
    assert stamp(url) != first
    assert local_copy(url).read_bytes() == b"other"


def test_a_folder_is_copied_with_its_files(store):
    for name in ("a.csv", "b.csv"):
        atomic_write(f"{store}/dump/{name}", name.encode())
    with borrowed(f"{store}/dump") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "b.csv"]
    assert not folder.exists()


def test_a_writer_that_fails_leaves_the_old_object(store):
    url = f"{store}/x.txt"
    atomic_write(url, b"old")

    def fails(path):
        path.write_bytes(b"half")
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        atomic_write(url, fails)
    assert local_copy(url).read_bytes() == b"old"
    assert names_in(store) == ["x.txt"]


def test_missing_objects_are_named(store):
    with pytest.raises(InputError, match=f"^{store}/none.npz: no such object"):
        read_load(Path(f"{store}/none.npz"))
    with pytest.raises(InputError, match=r"none-\*: no such file"):
        files_of([f"{store}/none-*"])
    with pytest.raises(eplb.errors.InputError, match="no such object"):
        read_plan(f"{store}/none.json")


def test_a_trace_in_many_objects_is_reduced(store, tmp_path):
    pytest.importorskip("pyarrow")
    paths = write_parts(tmp_path, (5, 6, 7))
    for path in paths:
        atomic_write(f"{store}/set/{Path(path).name}", Path(path).read_bytes())
    found = files_of([f"{store}/set/*.parquet"])
    assert found == [f"{store}/set/part-{i}.parquet" for i in range(3)] == matching(f"{store}/set/*")
    shards = [Shard(path, window=2) for path in found]
    made = reduce_trace(shards, Combine.TIME, Threads(), Checkpoint(tmp_path / "kept"))
    assert made.load == oracle(paths, Combine.TIME, 2)


def test_a_scheme_that_nothing_serves_and_a_missing_fsspec_are_named(monkeypatch):
    with pytest.raises(InputError, match=r"nonsense://x/y\.npz: ValueError: Protocol not known: nonsense"):
        read_load("nonsense://x/y.npz")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match="extra 'scale'"):
        local_copy("memory://x/y")
