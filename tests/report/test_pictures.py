"""Figures of a report: their arrays, lines and texts."""

import sys

import numpy as np
import pytest

import eplb
from eplb.errors import InputError, MissingExtraError, UnknownNameError
from eplb.planning.redundancy_sweep import sweep
from eplb.report import gather, pictures, style
from eplb.report.pictures import Measure, Order
from eplb.report.pictures.balance_and_token_spread import undominated
from eplb_traces import ExpertLoad, ModelShape
from eplb_traces.coactivation.layer_coactivation import CoActivation, coactivation
from tests.report.examples import SHAPE, contents_of_trace, placement, skewed, some_trace

pytest.importorskip("matplotlib")


def shown(axes):
    """The one image of the axes, cells without a value as nan."""
    (image,) = axes.get_images()
    return np.ma.filled(image.get_array().astype(float), np.nan)


def words(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def heights(axes):
    """{label: value at each rank or layer} of bars and of dashes, which do not reach their neighbours."""
    dashes = {}
    for drawn in axes.collections:
        if drawn.get_label()[0] != "_" and hasattr(drawn, "get_segments"):
            ends = np.array(drawn.get_segments())
            assert (ends[:, 0, 1] == ends[:, 1, 1]).all()
            assert (np.diff(ends[:, :, 0]) <= 1).all()
            dashes[drawn.get_label()] = ends[:, 0, 1]
    bars = {bar.get_label(): np.array([patch.get_height() for patch in bar]) for bar in axes.containers}
    return bars | dashes


def line_places(axes, axis):
    """Where the border lines stand, upright ones for axis 0."""
    data = [np.asarray(line.get_data()[axis]) for line in axes.get_lines()]
    return sorted({float(places[0]) for places in data if (places == places[0]).all()})


def test_expert_load_is_over_the_mean_of_its_layer_and_empty_layers_are_grey():
    load = ExpertLoad([[[1, 3, 0, 4], [0, 0, 0, 0]], [[1, 1, 2, 4], [0, 0, 0, 0]]], shape=ModelShape(2, 4, 1, 2))
    axes = pictures.draw_expert_load(load)
    # Sums 2, 4, 2, 8: mean 4.
    np.testing.assert_array_equal(shown(axes), [[0.5, 1, 0.5, 2], [np.nan] * 4])
    assert line_places(axes, 0) == [1.5]
    assert axes.get_xlabel() == "logical expert (lines: expert groups)"


def test_the_largest_loads_share_the_last_colour_and_the_label_gives_the_maximum():
    tokens = np.ones((1, 1000))
    tokens[0, 0] = 1000
    axes = pictures.draw_expert_load(ExpertLoad(tokens))
    (image,) = axes.get_images()
    # The others are half the mean: one power of two on both sides of it.
    assert image.get_clim() == (0.5, 2)
    # 1000 over a mean of 1.999.
    assert axes.figure.axes[1].get_ylabel() == "tokens over layer mean (to 500.3)"


@pytest.mark.parametrize("load", [skewed(1, 1), skewed(1, 512), skewed(94, 64), ExpertLoad(np.zeros((2, 4)))])
def test_expert_load_of_any_size(load):
    assert shown(pictures.draw_expert_load(load)).shape == load.total.shape


def test_replica_counts_are_the_placements():
    axes = pictures.draw_replica_counts(placement(), num_expert_groups=4, name="$plan")
    np.testing.assert_array_equal(shown(axes), placement().logical_replica_count)
    assert line_places(axes, 0) == [3.5, 7.5, 11.5]
    assert axes.get_title() == r"Replicas of every expert in \$plan"


def test_many_replicas_share_the_last_colour_and_the_label_gives_the_maximum():
    many = eplb.Placement([[0] * 20 + [1]], 2, eplb.Topology(1, 21, 1))
    axes = pictures.draw_replica_counts(many)
    assert axes.get_images()[0].get_clim() == (0.5, 6.5)
    assert axes.figure.axes[1].get_ylabel() == "replicas of an expert (to 20)"


def test_layer_balance_shows_every_plan_and_the_bound():
    views = contents_of_trace().plans
    axes = pictures.draw_layer_balance(views)
    lines, bound = axes.get_lines(), heights(axes)["proven lower bound"]
    for line, view in zip(lines, views, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), view.evaluation.max_over_mean)
    ratio = views[1].evaluation.max_over_mean_of_total
    np.testing.assert_allclose(bound, ratio / (1 + views[1].evaluation.gap))
    assert words(axes) == ["experts in order", "greedy", "proven lower bound"]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2


def test_rank_load_shows_tokens_before_and_after_and_the_bound():
    views = contents_of_trace().plans
    axes = pictures.draw_rank_load(views, 2, SHAPE)
    before, after, bound = heights(axes).values()
    np.testing.assert_array_equal(before, views[0].evaluation.total_rank_load[2])
    np.testing.assert_array_equal(after, views[1].evaluation.total_rank_load[2])
    np.testing.assert_array_equal(bound, np.full(4, views[1].bound.value[2]))
    assert line_places(axes, 0) == [1.5]  # two nodes
    assert axes.get_title() == "Load of every rank, layer 2 (5 in the model)"
    ratio = views[0].evaluation.max_over_mean_of_total[2]
    assert words(axes)[0] == f"experts in order: busiest {ratio:.3f}x the mean"
    # 64 x 4 tokens x 4 choices on 4 ranks: 256 is once the mean, on the right axis.
    (right,) = axes.child_axes
    assert right.get_ylabel() == "over the mean rank (x)"
    assert right._functions[0](256.0) == 1.0


def test_rank_load_bounds_fast_and_slow_ranks_each():
    topology = eplb.Topology(1, 2, 2, rank_speed=(3.0, 1.0))
    contents = gather(ExpertLoad([[3, 3, 1, 1]]), {"p": eplb.Placement([[0, 1, 2, 3]], 4, topology)})
    bound = heights(pictures.draw_rank_load(contents.plans, 0, contents.load.shape))["proven lower bound"]
    assert bound[0] == 3 * bound[1] > 0


def test_rank_load_of_an_empty_layer_and_a_single_rank():
    only = eplb.Placement([[0, 1]] * 2, 2, eplb.Topology(1, 1, 2))
    contents = gather(ExpertLoad([[0, 0], [1, 2]]), {"p": only})
    for layer, tokens in enumerate((0, 3)):
        axes = pictures.draw_rank_load(contents.plans, layer, contents.load.shape)
        assert [bar.get_height() for bar in axes.patches] == [tokens]


def test_balance_over_windows_shows_mean_and_range_of_layers():
    contents = contents_of_trace()
    axes = pictures.draw_balance_over_windows(contents.plans, contents.windows)
    for line, band, view in zip(axes.get_lines(), axes.collections, contents.plans, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), view.balance_by_window.mean(axis=1))
        corners = band.get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == (view.balance_by_window.min(), view.balance_by_window.max())
    assert axes.get_xlabel() == "window (0: step 0; 3: step 3)"


def test_balance_against_token_spread_shows_layers_means_and_the_best():
    views = contents_of_trace().plans
    axes = pictures.draw_balance_and_token_spread(views)
    *points, front = axes.get_lines()
    for index, view in enumerate(views):
        cloud, mean = points[2 * index : 2 * index + 2]
        np.testing.assert_array_equal(cloud.get_xdata(), view.spread.ranks_per_token)
        np.testing.assert_array_equal(cloud.get_ydata(), view.evaluation.max_over_mean)
        assert mean.get_xdata()[0] == view.spread.ranks_per_token.mean()
        assert f"{view.spread.nodes_per_token.mean():.2f} nodes" in words(axes)[index]
    assert len(front.get_xdata()) in (1, 2)


def test_traffic_shows_the_tokens_of_the_mean_layer_from_rank_to_rank():
    view = contents_of_trace().plans[1]
    axes = pictures.draw_traffic(view.traffic, name="greedy")
    np.testing.assert_allclose(shown(axes), view.traffic.rank_matrix / 3)
    # 4 steps of 64 tokens on 4 ranks: a token is sent to the ranks that it visits.
    assert shown(axes).sum() == pytest.approx(256 * view.spread.ranks_per_token.mean())
    assert line_places(axes, 0) == line_places(axes, 1) == [1.5]
    assert axes.get_ylabel() == "from rank (sources unknown: alike)"
    assert f"{view.spread.nodes_per_token.mean():.2f} nodes" in axes.get_title()


def test_points_on_the_front_are_undominated():
    assert undominated([(2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (2, 1)]) == [(1, 3), (2, 1)]


def test_figures_of_token_spread_and_windows_require_their_data():
    contents = gather(skewed(), topology=eplb.Topology(1, 2, 4))
    with pytest.raises(InputError, match="plan experts in order: expected the spread"):
        pictures.draw_balance_and_token_spread(contents.plans)
    with pytest.raises(InputError, match="plan experts in order: expected its balance in 3 windows"):
        pictures.draw_balance_over_windows(contents.plans, skewed(num_windows=3))


def test_migration_shows_replicas_from_rank_to_rank():
    before = eplb.Placement([[0, 1, 2, 3]], 4, eplb.Topology(2, 2, 1))
    migration = eplb.Migration.between(before, eplb.Placement([[1, 0, 2, 3]], 4, before.topology), 7.0)
    axes = pictures.draw_migration(migration, name="b")
    expected = np.full((4, 4), np.nan)
    expected[1, 0] = expected[0, 1] = 1  # experts 0 and 1 change places
    np.testing.assert_array_equal(shown(axes), expected)
    assert axes.get_title() == "Migration to b:\n2 replicas, 50.0 % of the slots"
    assert line_places(axes, 0) == line_places(axes, 1) == [1.5]


def test_a_migration_that_moves_nothing_is_all_grey():
    axes = pictures.draw_migration(eplb.Migration.between(placement(), placement()))
    assert np.isnan(shown(axes)).all()


def test_redundancy_shows_every_point_on_both_axes():
    points = sweep(skewed(), 4, 1, range(0, 17, 8), 1e9)
    axes = pictures.draw_redundancy(points)
    left, right = axes.figure.axes
    assert left is axes
    assert [list(line.get_xdata()) for line in [*left.get_lines(), *right.get_lines()]] == [[0, 8, 16]] * 3
    assert list(left.get_lines()[0].get_ydata()) == [point.max_over_mean_mean for point in points]
    # 2 layers of 1 GB an expert: 2, 4, 6 slots.
    assert list(right.get_lines()[0].get_ydata()) == [4, 8, 12]
    assert len(words(right)) == 3
    with pytest.raises(InputError, match="expected at least one"):
        pictures.draw_redundancy(())


def of_layer_1():
    return coactivation(some_trace(), 1)


@pytest.mark.parametrize("order", Order)
def test_coactivation_by_tokens_and_lift_in_both_orders(order):
    found = of_layer_1()
    places = np.arange(16) if order is Order.BY_ID else found.order()
    square = np.ix_(places, places)
    off_diagonal = ~np.eye(16, dtype=bool)
    tokens = shown(pictures.draw_coactivation(found, SHAPE, measure=Measure.TOKENS, order=order))
    np.testing.assert_array_equal(np.nan_to_num(tokens), np.where(off_diagonal, found.pairs[square], 0))
    lift = shown(pictures.draw_coactivation(found, SHAPE, measure=Measure.LIFT, order=order))
    expected = np.clip((found.pairs + 5) / (found.expected_pairs + 5), 1 / 8, 8)[square]
    np.testing.assert_allclose(lift, np.where(off_diagonal, expected, np.nan))
    assert np.isnan(lift.diagonal()).all()


def test_lift_of_an_expert_without_tokens_is_grey():
    pairs = np.array([[9, 4, 0], [4, 9, 0], [0, 0, 0]])
    lift = shown(pictures.draw_coactivation(CoActivation(0, pairs, 14), ModelShape(1, 3)))
    assert np.isnan(lift[2]).all()
    assert lift[0, 1] > 0


def test_legends_do_not_cover_data():
    names = {
        f"a plan with quite a long name {i}": placement(name) for i, name in enumerate(("linear", "zigzag", "greedy"))
    }
    contents = gather(some_trace(), names)
    for axes in (
        pictures.draw_layer_balance(contents.plans),
        pictures.draw_balance_over_windows(contents.plans, contents.windows),
        pictures.draw_balance_and_token_spread(contents.plans),
        pictures.draw_rank_load(contents.plans, 0, SHAPE),
    ):
        axes.figure.draw_without_rendering()
        in_data = axes.get_legend().get_window_extent().transformed(axes.transData.inverted())
        lines = [np.max(line.get_ydata()) for line in axes.get_lines() if line.get_label()[0] != "_"]
        steps = [np.max(found) for found in heights(axes).values()]
        assert max(lines + steps) < in_data.y0


def test_coactivation_divides_groups_by_lines_or_names_them_in_a_strip():
    by_id = pictures.draw_coactivation(of_layer_1(), SHAPE)
    assert line_places(by_id, 0) == line_places(by_id, 1) == [3.5, 7.5, 11.5]
    assert by_id.get_title().startswith("Experts chosen together, layer 1 (2 in the model), 256 tokens")
    by_likeness = pictures.draw_coactivation(of_layer_1(), SHAPE, order=Order.BY_LIKENESS)
    (strip,) = by_likeness.child_axes
    np.testing.assert_array_equal(shown(strip)[:, 0], of_layer_1().order() // 4)
    without_groups = pictures.draw_coactivation(of_layer_1(), ModelShape(3, 16), order=Order.BY_LIKENESS)
    assert without_groups.child_axes == []


@pytest.mark.parametrize("measure", Measure)
@pytest.mark.parametrize("order", Order)
def test_coactivation_of_odd_layers(measure, order):
    # No tokens; one expert; top-1, so no pairs; 512 experts of which two are chosen together.
    meet = np.zeros((512, 512), np.int64)
    meet[np.ix_([3, 500], [3, 500])] = 5
    for pairs in (np.zeros((4, 4), np.int64), np.array([[3]]), np.diag([3, 0, 2]), meet):
        shape = ModelShape(1, len(pairs))
        drawn = pictures.draw_coactivation(CoActivation(0, pairs, 9), shape, measure=measure, order=order)
        assert shown(drawn).shape == pairs.shape
        drawn.figure.draw_without_rendering()


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: pictures.draw_expert_load(skewed(), ax=ax),
        lambda ax: pictures.draw_replica_counts(placement(), ax=ax),
        lambda ax: pictures.draw_layer_balance(contents_of_trace().plans, ax=ax),
        lambda ax: pictures.draw_rank_load(contents_of_trace().plans, 0, SHAPE, ax=ax),
        lambda ax: pictures.draw_balance_over_windows(contents_of_trace().plans, contents_of_trace().windows, ax=ax),
        lambda ax: pictures.draw_balance_and_token_spread(contents_of_trace().plans, ax=ax),
        lambda ax: pictures.draw_migration(contents_of_trace().plans[1].migration, ax=ax),
        lambda ax: pictures.draw_traffic(contents_of_trace().plans[1].traffic, ax=ax),
        lambda ax: pictures.draw_redundancy(sweep(skewed(), 4, 1, [0]), ax=ax),
        lambda ax: pictures.draw_coactivation(of_layer_1(), SHAPE, ax=ax),
    ],
)
def test_every_figure_uses_the_given_axes_and_not_pyplot(draw):
    from matplotlib.figure import Figure

    place = Figure().add_subplot()
    assert draw(place) is place
    assert place.get_xlabel()
    assert place.get_title()
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []


@pytest.mark.parametrize("image_format", style.ImageFormat)
def test_equal_pictures_have_equal_bytes(tmp_path, image_format):
    for name in ("a", "b"):
        style.save(pictures.draw_expert_load(skewed()), tmp_path / f"{name}.{image_format}")
    content = (tmp_path / f"a.{image_format}").read_bytes()
    assert content == (tmp_path / f"b.{image_format}").read_bytes()
    assert content[:4] == {"png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF"}[image_format]


def test_any_file_name_can_be_drawn(tmp_path):
    names = {"_hidden": placement("zigzag"), "$x^2": placement(), "很长的名字" * 20: placement("linear")}
    contents = gather(some_trace(), names)
    axes = pictures.draw_layer_balance(contents.plans)
    assert words(axes)[:2] == [" _hidden", r"\$x^2"]
    assert len(words(axes)[2]) == 40
    style.save(axes, tmp_path / "x.png")


def test_files_that_cannot_be_written_are_refused(tmp_path):
    axes = pictures.draw_expert_load(skewed())
    with pytest.raises(InputError, match="expected a name that ends in"):
        style.save(axes, tmp_path / "x.gif")
    with pytest.raises(InputError, match="cannot write"):
        style.save(axes, tmp_path / "nowhere" / "x.png")
    with pytest.raises(UnknownNameError):
        style.ImageFormat.named("gif")


def test_drawing_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="extra 'report'"):
        pictures.draw_migration(eplb.Migration.between(placement(), placement()))
