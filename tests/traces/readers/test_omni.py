import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace


def dump(tmp_path, step, rank, rows):
    """As the engine writes it: a tab after every count, the last one of a line too."""
    text = rows if isinstance(rows, str) else "".join("".join(f"{count}\t" for count in row) + "\n" for row in rows)
    (tmp_path / f"activation_counts_recordstep_{step}_rank_{rank}.txt").write_text(text)


def test_ranks_stand_side_by_side_and_steps_are_windows(tmp_path):
    for step in (10, 9):
        dump(tmp_path, step, 0, [[step, 1], [2, 3]])
        dump(tmp_path, step, 1, [[4, 5], [6, 0]])
    (tmp_path / "pattern.npy").write_bytes(b"not read")
    load = read_load(tmp_path, num_experts=4)
    np.testing.assert_array_equal(load.tokens[0], [[9, 1, 4, 5], [2, 3, 6, 0]])
    assert load.labels == ("step 9", "step 10")
    shape = ModelShape(2, 4, 1, moe_layer_ids=(3, 4))
    assert read_load(tmp_path, shape=shape).shape == shape


def test_generated_dumps_come_back(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 10**9, (3, 4, 24))
    for window, matrix in enumerate(tokens):
        for rank in range(12):
            dump(tmp_path, window, rank, matrix[:, 2 * rank : 2 * rank + 2])
    np.testing.assert_array_equal(read_load(tmp_path, num_experts=24).tokens, tokens)


def test_a_step_that_a_rank_lacks_is_left_out_and_said(tmp_path, caplog):
    for step, rank in ((1, 0), (1, 1), (2, 0), (3, 1)):
        dump(tmp_path, step, rank, [[step]])
    assert read_load(tmp_path, num_experts=2).labels == ("step 1",)
    assert "2 steps lack the file of a rank: left out" in caplog.text


@pytest.mark.parametrize(
    ("dumps", "message"),
    [
        ([(1, 1, [[1]])], "no step has the files of all ranks 0 to 1"),
        ([(1, 0, "")], "recordstep_1_rank_0.txt: the file is empty"),
        ([(1, 0, "1\t2\n3\n")], "rank_0.txt: not a table of counts"),
        ([(1, 0, "1\tx\n")], "not a table of counts"),
        ([(1, 0, "1\tnan\n")], "row 0, column 1 = nan: expected a finite number >= 0"),
        ([(1, 0, "1\t2\n3\t-4\n")], "row 1, column 1 = -4.0: expected a finite number >= 0"),
        ([(1, 0, [[1, 2]]), (1, 1, [[1]])], r"rank_1.txt: has 1 layers x 1 slots: expected \(1, 2\)"),
        ([(1, 0, [[0, 0]])], "every count is zero: an empty recording"),
        ([(1, 0, [[1, 2]]), (1, 1, [[1, 2]])], "the ranks have 4 slots and the model 3 experts"),
        ([], "the folder has no activation_counts"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, dumps, message):
    for step, rank, rows in dumps:
        dump(tmp_path, step, rank, rows)
    with pytest.raises(InputError, match=message):
        read_load(tmp_path, num_experts=3, format="omni")


def test_a_dump_is_no_trace(tmp_path):
    dump(tmp_path, 1, 0, [[1]])
    with pytest.raises(InputError, match=r"omni-infer activation dump, .* holds tokens per expert"):
        read_trace(tmp_path, num_experts=1)


def test_slots_are_made_experts_by_the_map_in_force_or_refused(tmp_path):
    dump(tmp_path, 1, 0, [[1, 2], [3, 4]])
    dump(tmp_path, 1, 1, [[5, 6], [7, 8]])
    with pytest.raises(InputError, match=r"4 slots .* recorded_under \(--recorded-under\)"):
        read_load(tmp_path)
    pattern = np.array([[0, 1, 2, 1], [2, 0, 1, 0]])
    load = read_load(tmp_path, recorded_under=pattern)
    np.testing.assert_array_equal(load.total, [[1, 8, 5], [12, 7, 3]])
    with pytest.raises(InputError, match="has no slot of expert 1 in layer 0"):
        read_load(tmp_path, recorded_under=np.array([[0, 2, 2, 0], [2, 0, 1, 0]]))
    with pytest.raises(InputError, match="1 x 4 layers x slots: the file has 2 x 4"):
        read_load(tmp_path, recorded_under=pattern[:1])
