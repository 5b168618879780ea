import datetime

import numpy as np
import pytest

from eplb_traces import InputError, ReadOptions, read, read_load, read_trace
from tests.traces.examples import RECORDINGS, joined, needs_recordings

torch = pytest.importorskip("torch")

# One dense layer, then two MoE layers of 4 experts in 6 slots: experts 0 and 2 twice.
MAP = torch.tensor([[0, 1, 2, 3, 0, 2], [0, 1, 2, 3, 0, 2], [2, 0, 1, 3, 2, 0]])


def saved(path, document):
    torch.save(document, path)
    return path


def record(pass_id, rank, chosen, **more):
    """One pass with the physical ids `chosen` [MoE layers, T, K], as the recorder writes it: padded to top-8."""
    chosen = torch.tensor(chosen, dtype=torch.int32)
    padded = torch.full((3, chosen.shape[1], 8), -1, dtype=torch.int32)
    padded[1:, :, : chosen.shape[2]] = chosen
    count = torch.stack([torch.bincount(layer[layer >= 0], minlength=6)[:6] for layer in padded.reshape(3, -1)])
    return {
        "forward_pass_id": pass_id,
        "rank": rank,
        "gatherer_key": "primary",
        "global_physical_count": count.int(),
        "topk_ids_of_layer": padded,
        **more,
    }


def recording(*records, physical_to_logical=MAP):
    return {"records": list(records), "last_physical_to_logical_map": physical_to_logical}


# Layer 1: slots 0, 4 are expert 0; 1 is 1; 2, 5 are 2; 3 is 3. Layer 2: slots 1, 5 are 0; 2 is 1; 0, 4 are 2; 3 is 3.
FIRST = record(7, 0, [[[0, 1], [4, 5]], [[1, 2], [0, 5]]], extend_seq_lens=[2])
OTHER_RANK = record(7, 1, [[[3, 2]], [[3, 4]]], extend_seq_lens=[1])
LATER = record(8, 0, [[[0, 3], [1, 2]], [[1, 3], [1, 3]]], extend_seq_lens=None)


def test_stat_mode_drops_unused_steps_and_dense_layers(tmp_path):
    counts = torch.zeros(4, 3, 2, dtype=torch.int32)
    counts[1, 1:] = torch.tensor([[1, 2], [3, 4]])
    path = saved(
        tmp_path / "stat.pt", {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    )
    load = read_load(path)
    np.testing.assert_array_equal(load.tokens, [[[1, 2], [3, 4]]])
    assert load.shape.moe_layer_ids == (1, 2)
    with pytest.raises(InputError, match=r"logical_count .* holds tokens per expert"):
        read_trace(path)


def test_per_pass_counts_are_made_logical_and_summed_over_ranks(tmp_path):
    saved(tmp_path / "recorder_1.0_0.pt", recording(LATER, FIRST))
    saved(tmp_path / "recorder_1.1_1.pt", recording(OTHER_RANK))
    load = read_load(tmp_path)
    # Pass 7 chose slots 0 1 4 5 3 2 in layer 1 and 1 2 0 5 3 4 in layer 2: experts 0 1 0 2 3 2 and 0 1 2 0 3 2.
    np.testing.assert_array_equal(load.tokens[0], [[2, 1, 2, 1], [2, 1, 2, 1]])
    np.testing.assert_array_equal(load.tokens[1], [[1, 1, 1, 1], [2, 0, 0, 2]])
    assert load.shape.moe_layer_ids == (1, 2)
    np.testing.assert_array_equal(read_load(tmp_path, window=10).tokens[0], load.total)


@pytest.mark.parametrize("read_it", [read_load, read_trace])
def test_the_same_pass_of_a_rank_in_two_files_is_refused_not_counted_twice(tmp_path, read_it):
    saved(tmp_path / "recorder_1.0_0.pt", recording(FIRST))
    saved(tmp_path / "recorder_2.0_0.pt", recording(LATER, FIRST))
    with pytest.raises(InputError, match=r"forward_pass_id 7 of rank 0 is there twice, and would count twice"):
        read_it(tmp_path)
    halves = [{**FIRST, "gatherer_key": key} for key in ("child_a", "child_b")]  # two batches that overlap
    saved(tmp_path / "recorder_2.0_0.pt", recording(*halves))
    assert read_it(tmp_path) is not None


@pytest.mark.parametrize("offset", [0, 1000, 100_000])
def test_windows_of_passes_begin_with_the_first_recorded_pass(tmp_path, offset):
    passes = [{**FIRST, "forward_pass_id": offset + number} for number in (8, 9, 10, 14)]
    saved(tmp_path / "recorder_1.0_0.pt", recording(*passes))
    one = read_load(tmp_path, window=1).tokens[0]
    # Passes 8 to 10, then 11 to 13 (none recorded), then 14 to 16.
    np.testing.assert_array_equal(read_load(tmp_path, window=3).tokens, [3 * one, one])


def test_per_token_mode_becomes_a_trace(tmp_path):
    saved(tmp_path / "recorder_1.0_0.pt", recording(LATER, FIRST))
    saved(tmp_path / "recorder_1.1_1.pt", recording(OTHER_RANK))
    trace = read_trace(tmp_path, num_experts=4)
    columns = joined(trace)
    assert (trace.shape.num_experts, trace.shape.top_k, trace.shape.moe_layer_ids) == (4, 2, (1, 2))
    assert columns["step"].tolist() == [7, 7, 7, 8, 8]
    assert columns["source_rank"].tolist() == [0, 0, 1, 0, 0]
    assert columns["request"].tolist() == [0, 0, 1, 2, 3]  # the last pass is decoding: every token a sequence
    assert columns["expert_ids"][:, 0].tolist() == [[0, 1], [0, 2], [3, 2], [0, 3], [1, 2]]
    np.testing.assert_array_equal(trace.load(1).tokens, read_load(tmp_path).tokens)
    with pytest.raises(InputError, match="num_experts = 5: the file has 4"):
        read_trace(tmp_path, num_experts=5)


def test_tokens_that_only_pad_a_batch_are_dropped(tmp_path):
    path = saved(tmp_path / "a.pt", recording(record(1, 0, [[[0, 1], [-1, -1]], [[0, 1], [-1, -1]]])))
    assert read_trace(path).num_tokens == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(1, 0, [[[0, 1]], [[-1, -1]]]), FIRST], "token 0 has ids in some layers and -1 in others"),
        ([record(1, 0, [[[0, 4]], [[0, 1]]])], r"expert_ids\[token 0, layer 0\] = \[0, 0\]: expert 0 is there twice"),
        (
            [{**FIRST, "topk_ids_of_layer": FIRST["topk_ids_of_layer"] + 6}],
            r"= 6: expected a physical id below 6, or -1",
        ),
        ([{**FIRST, "topk_ids_of_layer": torch.zeros(2, 1, 8)}], r"shape \(2, 1, 8\): expected \[3 layers, tokens"),
        (
            [{k: v for k, v in FIRST.items() if k != "topk_ids_of_layer"}],
            r"records\[0\]: no 'topk_ids_of_layer': a per",
        ),
        ([{**FIRST, "forward_pass_id": "7"}], "forward_pass_id = '7': expected an integer >= 0"),
        ([], "no record has a token: an empty recording"),
    ],
)
def test_wrong_tokens_are_named(tmp_path, records, message):
    path = saved(tmp_path / "a.pt", recording(*records))
    with pytest.raises(InputError, match=rf"a\.pt: .*{message}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"logical_count": torch.zeros(3, 4)}, "every count is zero: an empty recording"),
        ({"logical_count": torch.tensor([[1.0, float("nan")]])}, "= nan: expected finite and >= 0"),
        ({"logical_count": torch.tensor([[1, -1]])}, "= -1.0: expected finite and >= 0"),
        ({"logical_count": "many"}, "logical_count is a str: expected a tensor of numbers"),
        ({"logical_count": [[1, 2], [3]]}, "logical_count: .*inhomogeneous"),
        ({"physical_to_logical_map": MAP}, "expected 'logical_count' or 'records'"),
        (torch.ones(2, 2), "holds a tensor: expected a dictionary"),
        (recording(), "records is empty: an empty recording"),
        (recording({"forward_pass_id": 1}), r"records\[0\]: global_physical_count is a NoneType"),
        (recording({**FIRST, "global_physical_count": torch.ones(3, 5)}), r"shape \(3, 5\): expected \(3, 6\)"),
        (recording(FIRST, physical_to_logical=MAP - 1), "expected .layers, slots. of ids >= 0"),
        ({"records": [3], "last_physical_to_logical_map": MAP}, "records: expected a list of dictionaries"),
    ],
)
def test_wrong_counts_are_named(tmp_path, document, message):
    path = saved(tmp_path / "a.pt", document)
    with pytest.raises(InputError, match=rf"a\.pt: .*{message}"):
        read_load(path, format="sglang_recorder")


def test_ranks_with_different_maps_are_not_one_recording(tmp_path):
    saved(tmp_path / "a_0.pt", recording(FIRST))
    saved(tmp_path / "a_1.pt", recording(OTHER_RANK, physical_to_logical=MAP.flip(0)))
    with pytest.raises(InputError, match="last_physical_to_logical_map differs between the ranks"):
        read_load(tmp_path)


def test_a_file_that_needs_unpickling_is_refused_unrun(tmp_path):
    path = saved(tmp_path / "evil.pt", {"logical_count": torch.ones(1, 2), "when": datetime.datetime(2025, 1, 1)})
    with pytest.raises(InputError, match=r"evil.pt: .*needs unpickling, which can run any code.*datetime"):
        read_load(path)


def test_a_cut_file_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt", {"logical_count": torch.ones(40, 40)})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"a\.pt: not a whole file of torch.save"):
        read_load(path)
    saved(tmp_path / "b.pt", {"logical_count": torch.ones(2, 2)})
    with pytest.raises(InputError, match=r"a\.pt: not a whole file"):
        read_load(tmp_path)


def test_torch_is_not_needed(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pt", recording(FIRST, LATER))
    load, trace = read_load(path), joined(read_trace(path))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert read_load(path) == load
    np.testing.assert_array_equal(joined(read_trace(path))["expert_ids"], trace["expert_ids"])


@needs_recordings
def test_real_files():
    for name in ("fp4_1k1k", "fp4_1k8k"):
        load = read_load(RECORDINGS / "deepseek-r1" / f"expert_distribution_{name}_compressed.pt")
        assert load.tokens.shape == (1, 58, 256)
        assert load.shape.moe_layer_ids == tuple(range(3, 61))
    with pytest.raises(InputError, match="every count is zero: an empty recording"):
        read_load(RECORDINGS / "deepseek-r1" / "expert_distribution_fp8_1k1k_compressed.pt")


# Two choices and a fused shared expert, whose id 6 is beyond the 6 slots; in the second pass it stands first.
SHARED = record(7, 0, [[[0, 1, 6], [4, 5, 6]], [[1, 2, 6], [0, 5, 6]]], extend_seq_lens=[2])
SHARED_FIRST = record(8, 0, [[[6, 0, 3], [6, 1, 2]], [[6, 1, 3], [6, 1, 3]]])


def test_ids_of_shared_experts_are_left_out_where_they_stand(tmp_path):
    plain = saved(tmp_path / "plain.pt", recording(FIRST, LATER))
    shared = saved(tmp_path / "shared.pt", recording(SHARED, SHARED_FIRST))
    with pytest.raises(InputError, match=r"= 6: expected a physical id below 6, or -1; .*--ignore-ids"):
        read_trace(shared)
    found, expected = joined(read_trace(shared, ignore_ids=[6])), joined(read_trace(plain))
    np.testing.assert_array_equal(found["expert_ids"], expected["expert_ids"])
    assert "physical ids 6 left out" in read(shared, ReadOptions(ignore_ids=(6,))).summary
    with pytest.raises(InputError, match=r"ignore_ids \(--ignore-ids\) has no effect"):
        read_trace(plain, ignore_ids=[6])


def test_columns_of_shared_experts_are_left_out(tmp_path):
    path = saved(tmp_path / "shared.pt", recording(SHARED))
    plain = saved(tmp_path / "plain.pt", recording(FIRST))
    found = joined(read_trace(path, ignore_columns=[2]))
    np.testing.assert_array_equal(found["expert_ids"], joined(read_trace(plain))["expert_ids"])
    for columns in ([8], [-1], range(8)):
        with pytest.raises(InputError, match=r"--ignore-columns\): topk_ids_of_layer has the columns 0 to 7"):
            read_trace(path, ignore_columns=columns)


def test_counts_beyond_2_to_the_53_are_refused_not_rounded(tmp_path):
    large = torch.full((1, 3, 6), (1 << 53) + 1)
    path = saved(tmp_path / "a.pt", {"logical_count": large})
    with pytest.raises(InputError, match="logical_count has the count 9007199254740993: expected at most"):
        read_load(path)
    saved(path, recording({**FIRST, "global_physical_count": large[0]}))
    with pytest.raises(InputError, match="global_physical_count has the count 9007199254740993: expected at most"):
        read_load(path)


@pytest.mark.parametrize("read_it", [read_load, read_trace])
def test_a_map_without_a_slot_of_an_expert_is_refused(tmp_path, read_it):
    broken = MAP.clone()
    broken[1, 1] = 0
    path = saved(tmp_path / "a.pt", recording(FIRST, physical_to_logical=broken))
    with pytest.raises(InputError, match="last_physical_to_logical_map has no slot of expert 1 in layer 1"):
        read_it(path)


@pytest.mark.parametrize("key", ["global_physical_count", "topk_ids_of_layer"])
def test_ranks_that_recorded_nothing_are_told(tmp_path, key):
    parts = [{k: v for k, v in part.items() if k in (key, "forward_pass_id", "rank")} for part in (FIRST, OTHER_RANK)]
    for rank, part in enumerate(parts):
        saved(tmp_path / f"recorder_1.0_{rank}.pt", recording(part))
    assert not any("no records" in note for note in read(tmp_path).notes)
    saved(tmp_path / "recorder_1.0_1.pt", recording({**parts[1], "rank": 3}))
    assert "no records of ranks 1-2" in read(tmp_path).notes


def test_a_stat_recording_among_others_is_to_be_given_by_itself(tmp_path):
    saved(tmp_path / "recorder_1.0_0.pt", recording(FIRST))
    saved(tmp_path / "recorder_2.0_0.pt", {"logical_count": torch.ones(1, 3, 4)})
    with pytest.raises(InputError, match=r"recorder_2\.0_0\.pt: a stat recording, .* give this file, not the folder"):
        read(tmp_path)
