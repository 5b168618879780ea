"""Arrays of the page: round trip and quantization error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from eplb.report.html_arrays import Levels, packed, unpacked, upper_triangle, whole_numbers

SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@given(
    st.sampled_from(("uint8", "uint16", "int32", "float32", "float64")).flatmap(
        lambda dtype: npst.arrays(dtype, SHAPES, elements={"allow_nan": False} if "float" in dtype else None)
    )
)
def test_packed_arrays_survive_a_round_trip(array):
    found = unpacked(packed(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_packed_bytes_are_little_endian_whatever_the_array_is():
    number = np.array([1, 258])
    assert packed(number.astype(">i4"))["deflate"] == packed(number.astype("<i4"))["deflate"]


def test_packing_refuses_dtypes_that_the_page_cannot_read():
    with pytest.raises(TypeError, match="dtype int64: expected one of uint8"):
        packed(np.zeros(3, np.int64))


@pytest.mark.parametrize(("largest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65536, "int32")])
def test_whole_numbers_take_the_narrowest_type_that_holds_them(largest, dtype):
    array = np.array([[0, largest]])
    assert whole_numbers(array).dtype == dtype
    np.testing.assert_array_equal(whole_numbers(array), array)


def test_whole_numbers_of_nothing():
    assert whole_numbers(np.zeros((0, 4), np.int64)).shape == (0, 4)


@given(npst.arrays(np.float64, SHAPES, elements=st.one_of(st.just(0.0), st.floats(1e-9, 1e9))))
def test_levels_are_within_their_largest_error(values):
    found = Levels.of(values)
    positive = values > 0
    np.testing.assert_array_equal(found.values > 0, positive)
    off = np.abs(found.values[positive] / values[positive] - 1)
    assert (off <= found.largest_error + 1e-12).all()


def test_the_largest_error_of_levels_is_reached():
    # From 1 to 2 ** 254 one level is one power of two. sqrt(2) lies half way: its level is 1 or 2, off by a factor
    # of sqrt(2) either way, so the largest error is 41.4 %.
    found = Levels.of(np.array([1.0, 2.0**0.5, 2.0**254]))
    assert found.step == pytest.approx(1.0)
    assert found.largest_error == pytest.approx(2**0.5 - 1)
    assert abs(np.log2(found.values[1]) - 0.5) == pytest.approx(0.5)


def test_levels_use_the_whole_range():
    assert Levels.of(np.geomspace(0.01, 80, 1000)).levels.tolist()[::999] == [1, 255]


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros(0), np.full(3, 2.5)])
def test_levels_of_nothing_and_of_one_value_are_exact(values):
    found = Levels.of(values)
    np.testing.assert_allclose(found.values, values, rtol=1e-15)
    assert found.largest_error == 0


def test_nan_is_level_0():
    assert Levels.of(np.array([np.nan, 1.0])).levels.tolist() == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_upper_triangle_goes_row_by_row(size):
    matrix = np.arange(size * size).reshape(size, size)
    expected = [matrix[i, j] for i in range(size) for j in range(i + 1, size)]
    assert upper_triangle(matrix).tolist() == expected
