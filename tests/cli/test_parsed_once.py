"""A placement file is read and parsed once, and its sidecar at most once, whatever reads it."""

import builtins
import collections
import contextlib
import io
import json
import os

import numpy as np
import pytest

import eplb
from eplb.formats import FORMATS, ReadHints, array_file, omni, read_plan, sglang, trtllm, write_plan, yaml_text
from eplb.formats.engine_check import ENGINES
from eplb.formats.sidecar import sidecar_path

torch = pytest.importorskip("torch")

SHAPE = eplb.ModelShape(3, 16, moe_layer_ids=(1, 2, 4), num_hidden_layers=6)
TOPOLOGY = eplb.Topology(2, 2, 5)
HINTS = ReadHints(topology=TOPOLOGY, shape=SHAPE)
FILES = [(entry.name, suffix) for entry in FORMATS.values() for suffix in entry.suffixes]
# What decodes a file that is not JSON.
DECODERS = {
    ".pt": (sglang, "read_torch"),
    ".npz": (array_file, "archived_arrays"),
    ".npy": (np.lib.format, "read_array"),
    ".yaml": (yaml_text, "parse_yaml"),
    ".yml": (yaml_text, "parse_yaml"),
}


@pytest.fixture(scope="module")
def planned():
    load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (3, 16)), shape=SHAPE)
    return eplb.plan(load, TOPOLOGY, "greedy")


@contextlib.contextmanager
def counted(path):
    """Counts `opened` and `parsed` of the file and `opened beside` and `parsed beside` of its sidecar."""
    counts = collections.Counter()
    beside = sidecar_path(path)
    beside_text = beside.read_text() if beside.exists() else None
    real_open, real_loads = io.open, json.loads

    def count_open(file, mode="r", *args, **words):
        if not isinstance(file, int) and "w" not in mode:
            counts["opened"] += os.fspath(file) == str(path)
            counts["opened beside"] += os.fspath(file) == str(beside)
        return real_open(file, mode, *args, **words)

    def count_loads(text, *args, **words):
        counts["parsed beside" if text == beside_text else "parsed"] += 1
        return real_loads(text, *args, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", count_open)
        patch.setattr(builtins, "open", count_open)
        patch.setattr(json, "loads", count_loads)
        if path.suffix in DECODERS:
            owner, name = DECODERS[path.suffix]
            decode = getattr(owner, name)

            def count_decode(*args, **words):
                counts["parsed"] += 1
                return decode(*args, **words)

            patch.setattr(owner, name, count_decode)
        yield counts


def written(planned, folder, name, suffix, sidecar):
    path = folder / f"plan{suffix}"
    write_plan(planned, path, name)
    if not sidecar:
        sidecar_path(path).unlink(missing_ok=True)
    return path


def check_counts(counts, path):
    beside = int(sidecar_path(path).exists())
    assert (counts["opened"], counts["parsed"]) == (1, 1)
    assert (counts["opened beside"], counts["parsed beside"]) == (beside, beside)


every_file = pytest.mark.parametrize(("name", "suffix"), FILES)
with_and_without_sidecar = pytest.mark.parametrize("sidecar", [True, False], ids=["with its sidecar", "alone"])


@with_and_without_sidecar
@every_file
def test_read_plan_parses_once(name, suffix, sidecar, planned, tmp_path):
    path = written(planned, tmp_path, name, suffix, sidecar)
    with counted(path) as counts:
        read_plan(path, hints=HINTS)
    check_counts(counts, path)


@with_and_without_sidecar
@every_file
def test_for_engine_parses_once_also_where_it_needs_the_engines_hints(name, suffix, sidecar, planned, tmp_path):
    path = written(planned, tmp_path, name, suffix, sidecar)
    with counted(path) as counts:
        eplb.for_engine(path, ep_size=4, ep_rank=0, model_shape=SHAPE)
    check_counts(counts, path)


@with_and_without_sidecar
@every_file
def test_convert_parses_once(name, suffix, sidecar, planned, tmp_path, run):
    path = written(planned, tmp_path, name, suffix, sidecar)
    with counted(path) as counts:
        result = run("convert", path, tmp_path / "out.json", "--to", "vllm", "--ranks", 4, "--nodes", 2)
    assert result.exit_code == 0, result.stderr
    check_counts(counts, path)


@with_and_without_sidecar
@every_file
def test_diff_parses_each_file_once(name, suffix, sidecar, planned, tmp_path, run):
    old = tmp_path / "old.json"
    write_plan(planned, old)
    path = written(planned, tmp_path, name, suffix, sidecar)
    with counted(path) as counts:
        result = run("diff", old, path)
    assert result.exit_code == 0, result.stderr
    counts["parsed"] -= 1  # the old file, which is JSON
    check_counts(counts, path)


@pytest.mark.parametrize(("name", "suffix"), [file for file in FILES if file[0] in ENGINES])
def test_check_parses_once_and_needs_no_sidecar(name, suffix, planned, tmp_path, run):
    path = written(planned, tmp_path, name, suffix, sidecar=True)
    with counted(path) as counts:
        result = run("check", path, "--engine", name, "--ranks", 4)
    assert result.exit_code == 0, result.stderr
    assert (counts["opened"], counts["parsed"]) == (1, 1)
    assert (counts["opened beside"], counts["parsed beside"]) == (0, 0)


def test_a_second_parse_is_counted(planned, tmp_path):
    path = written(planned, tmp_path, "vllm", ".json", sidecar=True)
    with counted(path) as counts:
        read_plan(path)
        read_plan(path)
    with pytest.raises(AssertionError):
        check_counts(counts, path)
    assert counts == {"opened": 2, "parsed": 2, "opened beside": 2, "parsed beside": 2}


@pytest.mark.parametrize(
    ("name", "builder"),
    [("sglang", (sglang, "_all_rows")), ("omni", (omni, "_pattern")), ("trtllm", (trtllm, "required_layer_ids"))],
)
def test_what_is_checked_before_writing_is_what_is_written(name, builder, planned, tmp_path):
    calls, build = [], getattr(*builder)

    def count_build(*args):
        calls.append(args)
        return build(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*builder, count_build)
        write_plan(planned, tmp_path / f"plan{FORMATS[name].suffixes[0]}", name)
    assert len(calls) == 1
