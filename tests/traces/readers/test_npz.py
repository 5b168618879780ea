import io

import numpy as np
import pytest

from eplb_traces import InputError, read_load, read_trace
from eplb_traces.readers.npz import LOAD_KEYS
from tests.traces.examples import RECORDINGS, SMALL, needs_recordings, random_ids

IDS = random_ids(np.random.default_rng(0), 6, SMALL)
LAYERS = {"moe_layer_ids": np.arange(2)}


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "file.npz", **arrays)
    return tmp_path / "file.npz"


@pytest.mark.parametrize("key", [*LOAD_KEYS, "whatever"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_a_load_is_found_by_name_or_because_it_is_alone(tmp_path, key, dtype):
    tokens = np.arange(12, dtype=dtype).reshape(3, 4)
    np.testing.assert_array_equal(read_load(saved(tmp_path, **{key: tokens})).total, tokens)


@pytest.mark.parametrize("key", ["topk_ids", "expert_ids"])
def test_a_trace_takes_what_columns_there_are(tmp_path, key):
    path = saved(tmp_path, **{key: IDS}, step=np.arange(6), request=np.arange(6) // 2, source_rank=np.arange(6))
    (batch,) = read_trace(path, num_experts=SMALL.num_experts).batches()
    np.testing.assert_array_equal(batch.expert_ids, IDS)
    assert batch.request.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.source_rank.tolist() == list(range(6))
    (batch,) = read_trace(saved(tmp_path, **{key: IDS}, **LAYERS), num_experts=SMALL.num_experts).batches()
    assert batch.step.tolist() == batch.request.tolist() == [0] * 6


def test_sequences_become_requests_and_carry_their_domains(tmp_path):
    path = saved(tmp_path, expert_ids=IDS, seq_offsets=np.array([0, 1, 4, 6]), domain=np.array(["law", "code", "law"]))
    trace = read_trace(path, num_experts=SMALL.num_experts)
    (batch,) = trace.batches()
    assert batch.request.tolist() == [0, 1, 1, 1, 2, 2]
    assert [trace.domain_names[d] for d in batch.domain] == ["law", "code", "code", "code", "law", "law"]


def test_the_number_of_experts_comes_from_file_or_caller_and_may_not_differ(tmp_path):
    path = saved(tmp_path, expert_ids=IDS, **LAYERS)
    for read in (read_load, read_trace):
        with pytest.raises(InputError, match=r"file.npz: .* does not say how many experts there are: give num_experts"):
            read(path)
    assert read_load(path, num_experts=20).num_experts == 20
    path = saved(tmp_path, expert_ids=IDS, **LAYERS, num_experts=SMALL.num_experts)
    assert read_trace(path).shape.num_experts == SMALL.num_experts
    with pytest.raises(InputError, match=f"num_experts = 9: the file says {SMALL.num_experts}"):
        read_trace(path, num_experts=9)
    with pytest.raises(InputError, match=r"num_experts = \[4 5\]: expected one integer"):
        read_trace(saved(tmp_path, expert_ids=IDS, **LAYERS, num_experts=np.array([4, 5])))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, "the arrays are a, b: expected one of tokens, load"),
        ({"tokens": np.array([[1.0, np.nan]])}, r"tokens\[window 0, layer 0, expert 1\] = nan"),
        ({"tokens": np.array([[1, -3]])}, r"tokens\[window 0, layer 0, expert 1\] = -3"),
        (
            {"tokens": np.array(["x"], dtype=object)},
            r"not an .npz file of plain arrays: Object arrays cannot be loaded",
        ),
        ({"tokens": np.ones((2, 2)), "shape": np.array("{")}, "array shape is not JSON"),
        ({"tokens": np.ones((2, 2)), "shape": np.array("[]")}, "shape is a list: expected an object"),
        ({"expert_ids": IDS[0]}, r"expert_ids has shape \(2, 3\): expected \[tokens, layers, top-k\]"),
        ({"expert_ids": IDS + 9, **LAYERS}, r"expert_ids\[token 0, layer 0\] = \d+: expected 0 <= id < 8"),
        ({"expert_ids": IDS * 0, **LAYERS}, r"an empty recording"),
        ({"expert_ids": IDS // 7, **LAYERS}, r"expert [01] is there twice"),
        ({"expert_ids": IDS, "step": np.arange(5)}, r"step has shape \(5,\): expected one for each of 6 tokens"),
        ({"expert_ids": IDS, "seq_offsets": np.array([0, 4, 5])}, "from 0 to the number of tokens, 6"),
        ({"expert_ids": IDS, "seq_offsets": np.array([0, 4, 2, 6])}, "seq_offsets: expected ascending integers"),
        ({"expert_ids": IDS, **LAYERS, "domain": np.array([0, 1])}, r"domain has shape \(2,\)"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, arrays, message):
    with pytest.raises(InputError, match=rf"file\.npz: .*{message}"):
        read_load(saved(tmp_path, **arrays), num_experts=SMALL.num_experts)


def test_a_cut_file_and_a_single_array_are_refused(tmp_path):
    path = saved(tmp_path, tokens=np.ones((20, 20)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"not an .npz file of plain arrays"):
        read_load(path)
    memory = io.BytesIO()
    np.save(memory, np.ones((2, 2)))
    path.write_bytes(memory.getvalue())
    with pytest.raises(InputError, match=r"not an .npz file: it is a single array"):
        read_load(path)


@needs_recordings
@pytest.mark.parametrize(
    ("name", "size", "num_choices"),
    [
        ("moe-435m/windows.npz", (600, 8, 256), 600 * 8 * 16384 * 8),
        ("olmoe/windows.npz", (1024, 16, 64), None),
    ],
)
def test_real_windows(name, size, num_choices):
    load = read_load(RECORDINGS / name)
    assert load.tokens.shape == size
    assert num_choices in (None, load.tokens.sum())


@needs_recordings
def test_real_tokens():
    trace = read_trace(RECORDINGS / "moe-435m/tokens.npz", num_experts=256)
    load = trace.load(10)
    assert load.labels == ("steps 0-9", "steps 10-19", "steps 20-29", "steps 30-39")
    assert (load.tokens.sum(axis=2) == 10 * 8 * 512 * 8).all()  # steps x requests x tokens x top-k
    assert len(trace.domain_names) == 14
    lite = read_trace(RECORDINGS / "deepseek-v2-lite/tokens.npz", num_experts=64)
    (batch,) = lite.batches()
    assert batch.request.max() == 212
    assert set(lite.domain_names) >= {"intent", "law"}
    assert (lite.load().tokens.sum(axis=2) == 33279 * 6).all()
