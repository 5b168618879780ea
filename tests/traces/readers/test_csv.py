import numpy as np
import pytest

from eplb_traces import InputError, read_load


def read(tmp_path, text, **options):
    (tmp_path / "load.csv").write_text(text)
    return read_load(tmp_path / "load.csv", **options)


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5,0\n4,5,6\n",
        "1,2.5,0\r\n\r\n4,5,6\r\n",
        "1,2.5,0,\n4,5,6,\n",
        "e0,e1,e2,\n1,2.5,0,\n4,5,6,\n",
        "# counts\n1,2.5,0\n4,5,6\n",
        "# e2,e1,e0\n0,2.5,1\n6,5,4\n",
        " 1.0 2.5 0\n4 5  6 \n",
        '"1","2.5",0\n"4",5,6\n',
        "e2\te0\te1\n0\t1\t2.5\n6\t4\t5\n",
        "\ufeff1,2.5,0\n4,5,6",
        "e0,e1,e2\n1,2.5,0\n4,5,6\n",
        "layer,e0,e1,e2\n0,1,2.5,0\n1,4,5,6\n",
        "layer,0,1,2\n0,1,2.5,0\n1,4,5,6\n",
        ",0,1,2\n0,1,2.5,0\n1,4,5,6\n",
        "window,layer,expert,tokens\n0,0,0,1\n0,0,1,2.5\n0,1,0,4\n0,1,1,5\n0,1,2,6\n",
        "Layer, Expert, Tokens\n1,2,6\n1,1,5\n1,0,4\n0,0,1\n0,1,2.5\n",
    ],
)
def test_matrix_and_long_form_say_the_same(tmp_path, text):
    np.testing.assert_array_equal(read(tmp_path, text, num_experts=3).tokens, [[[1, 2.5, 0], [4, 5, 6]]])


def test_windows_of_the_long_form(tmp_path):
    load = read(tmp_path, "window,layer,expert,tokens\n0,0,1,3\n2,0,0,4\n")
    np.testing.assert_array_equal(load.tokens, [[[0, 3]], [[0, 0]], [[4, 0]]])


LONG = "window,layer,expert,tokens\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("1,2\n\n3\n", "line 3 has 1 cells, expected 2; column 2 = '': expected a finite number >= 0"),
        ("1,2\n3,4,5\n", "line 2 has 3 cells: expected 2"),
        ("1,2\n3,nan\n", "line 2, column 2 = 'nan': expected a finite number >= 0"),
        ("1,2\ninf,3\n", "line 2, column 1 = inf"),
        ("1,2\n3,-1\n", "line 2, column 2 = -1"),
        ("1,2\n3,x\n", "line 2, column 2 = 'x'"),
        ("1,2\n3,True\n", "line 2, column 2 = 'True'"),
        ("1,2\n3,99999999999999999999\n", "line 2, column 2 = 99999999999999999999: expected .* at most 2|expected a"),
        ('1,2\n3,"4,000"\n', "line 2, column 2 = '4,000': .* without thousands separator"),
        ("1;2\n3;4,5\n", "line 2, column 2 = '4,5': .* with a decimal point"),
        ("1;2\n3;4.500\n", "line 1, column 2 or below: a number with a point between semicolons"),
        ("1,x,3\n4,5,6\n", "line 1, column 2 = 'x': expected a finite number >= 0"),
        ("1,,3\n4,5,6\n", "line 1, column 2 = ''"),
        ("1,2\n,\n", "line 2, column 1 = '': expected a finite number >= 0; the cell is empty"),
        ("1,2\n# end,3\n", "line 2, column 1 = '# end'"),
        ("a,b\n1,2\n", "header a, b: expected layer, expert, tokens"),
        ("e0,e1\n", "the file has a header and no rows"),
        ("layer,e0,e1\n0,1,2\n0,1,2,3\n", "line 3 has 4 cells: expected 3"),
        ("layer,e0,e1\n0,1,2,3\n", "line 2 has 4 cells: expected 3"),
        ("e0,e1,\n1,2,\n3,4,5\n", "line 3 has a cell too many: expected 2"),
        (LONG, "the table has a header and no rows"),
        (LONG + "0,0,0\n", "line 2 has 3 cells: expected 4"),
        (LONG + "0,0,1.5,3\n", r"line 2, column 3 \(expert\) = 1.5: expected an integer >= 0"),
        (LONG + "0,0,1,3\n0,-1,1,3\n", r"line 3, column 2 \(layer\) = -1"),
        (LONG + "0,0,1,3\n0,0,1,3\n", r"line 3, column 3 \(expert\): layer 0, expert 1 is there twice"),
        (LONG + "0,0,9e14,3\n", "1 windows x 1 layers x 1 ranks x 900000000000001 experts are too many"),
        ("1,2\r3,4\r", "lines end with a carriage return alone"),
        ('1,2\n"3,4\n', "line . has 1 cells: expected 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"load\.csv: .*{message}"):
        read(tmp_path, text)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "load.csv").write_bytes(b"1,\xff\xfe\n")
    with pytest.raises(InputError, match="not a table in UTF-8"):
        read_load(tmp_path / "load.csv")


def test_one_file_of_a_dump_of_ranks_is_refused(tmp_path):
    for name in ("activation_counts_recordstep_3_rank_0.txt", "prefill_0.csv"):
        (tmp_path / name).write_text("1\t2\n3\t4\n")
        with pytest.raises(InputError, match="a file for each rank: give the folder"):
            read_load(tmp_path / name)


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "1 2\n3 4\n", "# a\n1\t2\n3\t4\n"])
def test_text_files_are_recognised_by_content(tmp_path, text):
    (tmp_path / "load.txt").write_text(text)
    np.testing.assert_array_equal(read_load(tmp_path / "load.txt").total, [[1, 2], [3, 4]])
