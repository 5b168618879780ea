import numpy as np
import pytest

from eplb_traces import InputError, read_load


def read(tmp_path, text):
    (tmp_path / "load.csv").write_text(text)
    return read_load(tmp_path / "load.csv")


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5,0\n4,5,6\n",
        "1,2.5,0\r\n\r\n4,5,6\r\n",
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
    np.testing.assert_array_equal(read(tmp_path, text).tokens, [[[1, 2.5, 0], [4, 5, 6]]])


def test_windows_of_the_long_form(tmp_path):
    load = read(tmp_path, "window,layer,expert,tokens\n0,0,1,3\n2,0,0,4\n")
    np.testing.assert_array_equal(load.tokens, [[[0, 3]], [[0, 0]], [[4, 0]]])


LONG = "window,layer,expert,tokens\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("1,2\n\n3\n", "line 3 has 1 cells: expected 2"),
        ("1,2\n3,nan\n", "line 2, column 2 = 'nan': expected a finite number >= 0"),
        ("1,2\ninf,3\n", "line 2, column 1 = 'inf'"),
        ("1,2\n3,-1\n", "line 2, column 2 = '-1'"),
        ("1,2\n3,x\n", "line 2, column 2 = 'x'"),
        ("1,x,3\n4,5,6\n", "line 1, column 2 = 'x': expected a finite number >= 0"),
        ("1,,3\n4,5,6\n", "line 1, column 2 = ''"),
        ("a,b\n", "the file has a header and no rows"),
        ("layer,a\n0,1,2\n", "line 2 has 3 cells: expected 2"),
        (LONG, "after the header: the table has no rows"),
        (LONG + "0,0,0\n", "line 2 has 3 cells: expected 4"),
        (LONG + "0,0,1.5,3\n", r"row 0: expert = 1.5: expected an integer >= 0"),
        (LONG + "0,0,1,3\n0,-1,1,3\n", "line 3, column 2 = '-1'"),
        (LONG + "0,0,1,3\n0,0,1,3\n", "row 1: window 0, layer 0, expert 1 is there twice"),
        (LONG + "0,0,9e15,3\n", "the indices require 1 windows x 1 layers x 9000000000000001 experts"),
        ("layer,expert,tokens,rank\n0,0,1,2\n", "header layer,expert,tokens,rank: expected window,layer"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"load\.csv: .*{message}"):
        read(tmp_path, text)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "load.csv").write_bytes(b"1,\xff\xfe\n")
    with pytest.raises(InputError, match="not a CSV file"):
        read_load(tmp_path / "load.csv")
