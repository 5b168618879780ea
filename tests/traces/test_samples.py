import importlib.util
from pathlib import Path

import numpy as np
import pytest

from eplb_traces import InputError, read_load, read_trace
from eplb_traces.samples import SAMPLES, located, sample_path
from tests.traces.examples import RECORDINGS, joined, needs_recordings

LIMITS = {"moe-435m.parquet": 2_000_000, "moe-435m-windows.npz": 700_000}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_small_and_described(name):
    assert sample_path(name).stat().st_size < LIMITS[name]
    assert f"`{name}`" in sample_path(name).with_name("README.md").read_text()
    load = read_load(sample_path(name))
    assert (load.num_layers, load.num_experts) == (8, 256)
    assert load.shape.moe_layer_ids == tuple(range(1, 9))
    assert load.total.all()


def test_the_trace_has_every_step_request_and_domain_evenly():
    trace = read_trace(sample_path("moe-435m.parquet"))
    columns = joined(trace)
    assert set(np.bincount(columns["step"])) == {8 * 86}  # 8 requests, every 6th of 512 tokens
    assert set(np.bincount(columns["request"])) == {86}
    assert len(np.bincount(columns["step"])) == 40
    assert len(np.bincount(columns["request"])) == 320
    assert len(trace.domain_names) == 14
    groups = columns["expert_ids"] // trace.shape.experts_per_group
    assert all(len(set(token)) <= trace.shape.top_k_groups for token in groups.reshape(-1, 8)[::97].tolist())


def test_unknown_samples_are_refused_with_the_list():
    with pytest.raises(InputError, match=r"sample 'x' is unknown: expected one of moe-435m.parquet"):
        sample_path("x")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_read_by_its_name_with_or_without_suffix(name):
    short = f"sample:{name.rpartition('.')[0]}"
    assert located(short) == located(f"sample:{name}") == sample_path(name)
    assert read_load(short) == read_load(sample_path(name))


def test_a_path_is_no_sample_and_an_unknown_sample_is_refused():
    assert located("samples/moe-435m.parquet") == Path("samples/moe-435m.parquet")
    with pytest.raises(InputError, match=r"sample:x: there is no such sample, expected sample:moe-435m or sample:moe"):
        read_trace("sample:x")


@needs_recordings
def test_samples_are_what_the_script_makes(tmp_path):
    path = Path(__file__).resolve().parents[1] / "tools" / "make_samples.py"
    spec = importlib.util.spec_from_file_location("make_samples", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(RECORDINGS / "moe-435m", tmp_path)
    for name in SAMPLES:
        assert read_load(tmp_path / name, window=None) == read_load(sample_path(name))
