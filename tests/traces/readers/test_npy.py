import re

import numpy as np
import pytest

from eplb_traces import InputError, read_load, read_trace
from tests.traces.examples import SMALL, random_ids


def test_loads_of_one_and_more_windows(tmp_path):
    for tokens in (np.arange(6).reshape(2, 3), 5000 + np.arange(12.0).reshape(2, 2, 3)):
        np.save(tmp_path / "load.npy", tokens)
        np.testing.assert_array_equal(read_load(tmp_path / "load.npy").tokens, tokens.reshape(-1, 2, 3))


def test_the_ids_that_vllm_returns(tmp_path):
    ids = random_ids(np.random.default_rng(0), 5, SMALL)
    np.save(tmp_path / "routed.npy", ids)
    trace = read_trace(tmp_path / "routed.npy", num_experts=SMALL.num_experts, moe_layer_ids=(0, 1))
    (batch,) = trace.batches()
    np.testing.assert_array_equal(batch.expert_ids, ids)
    assert batch.step.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="give num_experts"):
        read_trace(tmp_path / "routed.npy")


def test_wrong_arrays_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, np.inf]]))
    with pytest.raises(InputError, match=r"a.npy: tokens\[window 0, layer 0, expert 1\] = inf"):
        read_load(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"float64 of shape \(1, 2\): expected integers \[tokens, layers, top-k\]"):
        read_trace(tmp_path / "a.npy", num_experts=4)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0")
    with pytest.raises(InputError, match=r"not a plain .npy file"):
        read_load(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", a=np.ones((2, 2)))
    with pytest.raises(InputError, match="an archive of several arrays"):
        read_load(tmp_path / "b.npz", format="npy")


COUNTS = np.random.default_rng(3).multinomial(40_000, np.full(64, 1 / 64), 4) + np.arange(64) * 40


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (COUNTS.astype(np.float16), "float16 counts up to [0-9]+ have lost their last digits"),
        (((COUNTS.astype(np.float32).view(np.uint32)) & 0xFFFF0000).view(np.float32), "bfloat16 counts up to"),
        (
            COUNTS.astype(np.uint8),
            "uint8 counts up to 25[0-9], and layers of unlike sums: .* 255 have wrapped",
        ),
        ((COUNTS * 40).astype(np.uint16), "uint16 counts up to 6.*counts beyond 65535 have wrapped"),
        (COUNTS.astype(np.float32), ""),
        (COUNTS.astype(np.uint16), ""),
        (np.vstack([COUNTS * 0, COUNTS])[3:].astype(np.uint16) * 8, ""),  # a dense layer, and equal sums
        (np.array([[200, 100], [150, 150]], dtype=np.uint8), ""),
        (np.array([[1000, 2000], [1500, 1500]], dtype=np.float32), ""),
    ],
)
def test_counts_of_a_type_that_cannot_hold_them_are_read_with_a_warning(tmp_path, caplog, counts, message):
    np.save(tmp_path / "a.npy", counts)
    load = read_load(tmp_path / "a.npy")
    np.testing.assert_array_equal(load.tokens[0], counts[counts.any(axis=1)])
    assert re.search(message, caplog.text) if message else not caplog.text
