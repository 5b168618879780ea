"""Expected seconds of a rank against sums over the normal distribution written plainly, and against drawn batches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from eplb.cost.grouped_ffn import GroupedFfn, RankFfn, TileRegime
from eplb.strategies.step_time.expected_time_kernel import expected_seconds, fill_moments, num_moments

SMALL_TILE = TileRegime(
    most_rows_per_slot=16, tile_rows=8, tile_columns=16, tiles_at_once=3, fixed_s=5e-5, expert_s=3e-9, tile_s=2e-9,
    row_s=1e-10, element_s=4e-10, wave_s=2e-6, depth_s=1e-8,
)  # fmt: skip
LARGE_TILE = TileRegime(
    most_rows_per_slot=math.inf, tile_rows=32, tile_columns=32, tiles_at_once=3, fixed_s=4e-5, expert_s=1e-9,
    tile_s=0.0, row_s=3e-10, element_s=9e-10, wave_s=4e-6, depth_s=2e-8,
)  # fmt: skip
FFN = GroupedFfn(kernel="test", regimes=(SMALL_TILE, LARGE_TILE)).for_expert(48, 20)


def of_rank(ffn: RankFfn, rows, counts, num_slots) -> float:
    """What the kernel expects of a rank with these experts."""
    sums = np.zeros(num_moments.py_func(ffn.table))
    moments = np.empty_like(sums)
    for expert_rows, count in zip(rows, counts, strict=True):
        fill_moments(float(expert_rows), count, ffn.table, moments)
        sums += moments
    return expected_seconds(sums, num_slots, ffn.table)


def plainly(ffn: RankFfn, rows, counts, num_slots) -> float:
    """The same expectation from tails over every integer, without the kernel's shortcuts."""
    if sum(rows) == 0:
        return 0.0
    mean = np.array([n / c for n, c in zip(rows, counts, strict=True) if n])
    spread = np.array([math.sqrt(n) / c for n, c in zip(rows, counts, strict=True) if n])
    counts = np.array([c for n, c in zip(rows, counts, strict=True) if n])
    total, width = mean.sum(), math.sqrt((spread**2).sum())
    expected, above = 0.0, 1.0
    for most, height, gate_up, down, at_once, fixed, expert, tile, row, gate_up_wave, down_wave in ffn.table:
        beyond = 0.0 if most == math.inf else norm.sf(((most + 1) * num_slots - 0.5 - total) / width)
        tiles, variance = 0.0, 0.0
        for m, s, c in zip(mean, spread, counts, strict=True):
            edges = np.arange(1, 2 + int((m + 12 * s) / height))
            tails = np.concatenate([[1 - math.exp(-m)], norm.sf((edges * height + 0.5 / c - m) / s)])
            if m - 4 * s > height:  # the chance of no row at all is neglected there
                tails[0] = 1.0
            tiles += tails.sum()
            variance += ((2 * np.arange(tails.size) + 1) * tails).sum() - tails.sum() ** 2
        seconds = fixed + (1 - np.exp(-mean)).sum() * expert + tiles * tile + total * row
        for columns, wave in ((gate_up, gate_up_wave), (down, down_wave)):
            middle, side = tiles * columns / at_once, math.sqrt(max(variance, 1e-18)) * columns / at_once
            steps = np.arange(1, 2 + int(middle + 12 * side))
            seconds += (1 + norm.sf((steps - middle) / side).sum()) * wave
        expected += (above - beyond) * seconds
        above = beyond
    return expected * (1 - math.exp(-total))


@given(
    rows=st.lists(st.sampled_from([0.0, 0.3, 5.0]) | st.floats(10, 400), min_size=1, max_size=5),
    seed=st.integers(0, 2**20),
    spare=st.integers(0, 2),
)
def test_the_kernel_agrees_with_plain_tails(rows, seed, spare):
    counts = np.random.default_rng(seed).integers(1, 4, len(rows)).tolist()
    found, expected = (f(FFN, rows, counts, len(rows) + spare) for f in (of_rank, plainly))
    assert found == pytest.approx(expected, rel=0.01)  # rounding up adds 1/2 within 1 %, and tails end at 4 deviations


@pytest.mark.parametrize("rows", [[3.0, 30.0, 70.0, 9.0], [0.5, 1.0, 0.2, 1.5], [400.0, 300.0, 500.0, 350.0]])
def test_the_expectation_is_the_mean_of_drawn_batches(rows):
    drawn = np.random.default_rng(0).poisson(rows, (40_000, 4))
    seconds = FFN.seconds(drawn, np.array([0, 4]))[:, 0]
    # Rows decide regime and tiles together; the kernel takes the two as independent: 2 % in the first case.
    assert of_rank(FFN, rows, [1] * 4, 4) == pytest.approx(seconds.mean(), rel=0.03)


def test_where_only_active_experts_cost_time_a_rank_takes_their_expected_number():
    table = np.array([[math.inf, 1e9, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    activated = of_rank(RankFfn(table), [2.0, 0.5, 0.0], [1, 1, 1], 3) / (1 - math.exp(-2.5))
    assert activated == pytest.approx((1 - math.exp(-2.0)) + (1 - math.exp(-0.5)))
    shared = of_rank(RankFfn(table), [2.0], [2], 1) / (1 - math.exp(-1.0))
    assert shared == pytest.approx(1 - math.exp(-1.0))
