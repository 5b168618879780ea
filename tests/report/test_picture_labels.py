"""Labels of the pictures: ids, layers of the model, nodes, values in cells, names of plans, colours of the page."""

import re
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest

import eplb
from eplb.report import colours, gather, pictures
from eplb.report.short_names import LONGEST_NAME, short_names
from eplb.report.style import axes_or_new
from eplb.report.ticks import id_ticks, layer_ticks, rank_ticks
from eplb_traces import ExpertLoad, ModelShape
from eplb_traces.coactivation.layer_coactivation import coactivation
from tests.report.examples import SHAPE, contents_of_trace, placement, skewed, some_trace

pytest.importorskip("matplotlib")


def tick_texts(axis, *, minor=False):
    return [label.get_text() for label in axis.get_ticklabels(minor=minor)]


def cell_texts(axes):
    """{(row, column): text} of the values in the cells."""
    return {
        (round(row), round(column)): drawn.get_label().removeprefix("_")
        for drawn in axes.collections
        for column, row in drawn.get_offsets()
    }


@pytest.mark.parametrize("num_experts", [4, 8, 32, 64])
def test_up_to_64_experts_each_have_a_tick_and_a_value(num_experts):
    load = skewed(4, num_experts)
    axes = pictures.draw_expert_load(load)
    assert tick_texts(axes.xaxis) == [str(expert) for expert in range(num_experts)]
    ratio = load.total / load.total.mean(axis=1, keepdims=True)
    shown = cell_texts(axes)
    assert len(shown) == 4 * num_experts
    for place, text in shown.items():
        assert abs(float(text) - ratio[place]) <= (0.05 if ratio[place] >= 0.095 else 0.005)


def test_many_experts_have_every_nth_tick_and_no_values():
    axes = pictures.draw_expert_load(skewed(2, 512))
    shown = [int(text) for text in tick_texts(axes.xaxis)]
    assert len(shown) > 8
    assert len(set(np.diff(shown))) == 1
    assert cell_texts(axes) == {}


@pytest.mark.parametrize("width", [2.0, 5.0, 12.0])
@pytest.mark.parametrize("count", [3, 60, 256, 1000])
def test_labels_of_ids_do_not_overlap(width, count):
    axes = axes_or_new(None, width=width)
    axes.set_xlim(-0.5, count - 0.5)
    id_ticks(axes.xaxis, range(count))
    axes.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_layers_have_their_numbers_in_the_model():
    views, load = contents_of_trace().plans, contents_of_trace().load
    numbers = ["1", "2", "5"]
    axes = pictures.draw_layer_balance(views, SHAPE)
    assert tick_texts(axes.xaxis) == numbers
    assert axes.get_xlabel() == "layer (number in the model)"
    for axes in (
        pictures.draw_expert_load(load),
        pictures.draw_replica_counts(placement(), layer_ids=SHAPE.moe_layer_ids),
    ):
        assert tick_texts(axes.yaxis) == numbers
        assert axes.get_ylabel() == "layer (number in the model)"
    unknown = pictures.draw_replica_counts(placement())
    assert (tick_texts(unknown.yaxis), unknown.get_ylabel()) == (["0", "1", "2"], "layer")


def test_layers_that_are_all_of_the_model_are_just_layers():
    axes = axes_or_new(None)
    layer_ticks(axes.xaxis, 3, (0, 1, 2))
    assert axes.get_xlabel() == "layer"


def test_nodes_are_named_under_the_middle_of_their_ranks():
    view = contents_of_trace().plans[1]
    for axes in (pictures.draw_rank_load([view, view], 0, SHAPE), pictures.draw_traffic(view.traffic)):
        assert axes.xaxis.get_ticklocs(minor=True).tolist() == [0.5, 2.5]
        assert tick_texts(axes.xaxis, minor=True) == ["node 0", "node 1"]
    assert tick_texts(axes.yaxis, minor=True) == ["node 0", "node 1"]
    # The middle of three ranks is a rank's own place: both labels stay.
    axes = axes_or_new(None)
    rank_ticks(axes.xaxis, eplb.Topology(2, 3, 1))
    assert axes.xaxis.get_ticklocs(minor=True).tolist() == [1, 4]


def test_one_node_is_not_named_and_many_nodes_are_numbered():
    axes = axes_or_new(None)
    rank_ticks(axes.xaxis, eplb.Topology(1, 4, 1))
    assert tick_texts(axes.xaxis, minor=True) == []
    rank_ticks(axes.xaxis, eplb.Topology(64, 1, 1))
    numbers = [int(text) for text in tick_texts(axes.xaxis, minor=True)]
    assert numbers[:2] == [0, numbers[1]]
    assert axes.get_xlabel() == "rank (below: node)"


def test_values_stand_in_the_cells_of_replicas_traffic_migration_and_pairs():
    view = contents_of_trace().plans[1]
    count = placement().logical_replica_count
    assert cell_texts(pictures.draw_replica_counts(placement())) == {
        place: str(value) for place, value in np.ndenumerate(count)
    }
    tokens = view.traffic.rank_matrix / 3
    assert cell_texts(pictures.draw_traffic(view.traffic))[1, 2] == f"{tokens[1, 2]:,.0f}"
    sent = view.migration.link_copies
    assert cell_texts(pictures.draw_migration(view.migration)) == {
        place: f"{value:.0f}" for place, value in np.ndenumerate(sent) if value
    }
    found = coactivation(some_trace(), 1)
    shown = cell_texts(pictures.draw_coactivation(found, SHAPE))
    assert len(shown) == 16 * 15  # the diagonal has no value
    lift = (found.pairs[2, 7] + 5) / (found.expected_pairs[2, 7] + 5)
    assert shown[2, 7] == f"{lift:.1f}"


@pytest.mark.parametrize("num_panels", [1, 2, 4])
def test_values_are_narrower_than_their_cells_in_axes_of_any_size(num_panels):
    from matplotlib.figure import Figure

    panels = Figure((14, 12), layout="constrained").subplots(num_panels, num_panels, squeeze=False).ravel()
    for axes in panels:
        pictures.draw_coactivation(coactivation(some_trace(), 1), SHAPE, ax=axes)
    axes.figure.draw_without_rendering()
    cell = 72 / axes.figure.dpi * np.diff(axes.transData.transform([(0, 0), (1, 0)])[:, 0])
    assert all(drawn.get_paths()[0].get_extents().width < cell for drawn in axes.collections)
    assert bool(axes.collections) is (num_panels < 4)


def test_similar_experts_keep_their_ids_on_the_axes():
    found = coactivation(some_trace(), 1)
    axes = pictures.draw_coactivation(found, SHAPE, order=pictures.Order.BY_LIKENESS)
    expected = [str(expert) for expert in found.order()]
    assert tick_texts(axes.xaxis) == tick_texts(axes.yaxis) == expected


def test_values_on_dark_cells_are_white():
    axes = pictures.draw_migration(contents_of_trace().plans[1].migration)
    (image,) = axes.get_images()
    for drawn in axes.collections:
        for (column, row), colour in zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True):
            cell = image.to_rgba(image.get_array())[round(row), round(column)][:3] @ [0.2126, 0.7152, 0.0722]
            assert (colour[:3] == (1 if cell < 0.45 else 0)).all()


def test_random_routing_is_neutral():
    # All pairs of 8 experts as often as by chance: lift 1, the middle of the scale and of the colours.
    tokens = 7000
    pairs = np.full((8, 8), tokens // 7)
    np.fill_diagonal(pairs, tokens)
    from eplb_traces.coactivation.layer_coactivation import CoActivation

    (image,) = pictures.draw_coactivation(CoActivation(0, pairs, 4 * tokens), ModelShape(1, 8, 2)).get_images()
    off_diagonal = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(image.get_array()[off_diagonal], 1, rtol=1e-9)
    drawn = image.to_rgba(image.get_array())[0, 1]
    np.testing.assert_allclose(drawn[:3], [0xF2 / 255] * 3, atol=0.01)


def test_axes_of_balance_begin_at_zero_or_at_the_best_value():
    contents = contents_of_trace()
    for axes in (
        pictures.draw_layer_balance(contents.plans),
        pictures.draw_rank_load(contents.plans, 0, SHAPE),
        pictures.draw_balance_over_windows(contents.plans, contents.windows),
    ):
        assert axes.get_ylim()[0] == 0
    axes = pictures.draw_balance_and_token_spread(contents.plans)
    assert (axes.get_xlim()[0], axes.get_ylim()[0]) == (1, 1)


def test_layers_are_not_joined_by_lines():
    for line in pictures.draw_layer_balance(contents_of_trace().plans).get_lines():
        assert line.get_linestyle() == "None"


def test_long_names_lose_what_they_have_in_common():
    names = [f"production-cluster-7/{name}-of-29-november-with-redundancy-32.json" for name in ("linear", "greedy")]
    assert short_names(names) == ("…linear…", "…greedy…")
    assert short_names(["experts in order", names[0]]) == (
        "experts in order",
        "production-cluster-7…-redundancy-32.json",
    )
    assert short_names(["a", "b"]) == ("a", "b")


def test_names_stay_distinct_and_short():
    names = [f"{'x' * 30}{letter}{'y' * 200}{letter}{'z' * 30}" for letter in "ab"]
    hidden = [f"{first}{'m' * 100}{middle}{'m' * 100}{first}" for first in "ab" for middle in "cd"]
    for given in (names, hidden):
        short = short_names(given)
        assert len(set(short)) == len(given)
        assert max(map(len, short)) <= LONGEST_NAME


def test_a_figure_grows_with_its_legend():
    few = gather(skewed(), {"a": placement_of(0)})
    many = gather(skewed(), {f"a plan whose name is rather long, {i}": placement_of(i) for i in range(6)})
    short, tall = (pictures.draw_rank_load(of.plans, 0, of.load.shape).figure for of in (few, many))
    assert tall.get_figheight() > short.get_figheight()


def placement_of(turn):
    return eplb.Placement([np.roll(np.arange(8), turn)] * 2, 8, eplb.Topology(1, 4, 2))


def test_an_expert_without_tokens_has_the_colour_of_the_lower_end_and_an_empty_layer_none():
    axes = pictures.draw_expert_load(ExpertLoad([[0, 2, 1, 1], [0, 0, 0, 0]]))
    (image,) = axes.get_images()
    drawn = image.to_rgba(image.get_array())
    lowest, nothing = colours.around_one()(0.0), colours.around_one()(np.nan)
    np.testing.assert_allclose(drawn[0, 0], lowest)
    np.testing.assert_allclose(drawn[1], [nothing] * 4)
    assert cell_texts(axes)[0, 0] == "0"


def test_folder_and_light_page_have_the_same_colours():
    page = files("eplb.report") / "page"
    css = (page / "page.css").read_text().lower()
    light = dict(reversed(re.findall(r"--(\w+): (#[0-9a-f]{6})", css)))  # the first of each name is the light one
    assert [light[name] for name in ("before", "after", "bound", "below", "middle", "above")] == [
        *colours.PLAN_COLOURS[:2],
        *(colours.BOUND_COLOUR, colours.BELOW_COLOUR, colours.NEUTRAL_COLOUR, colours.ABOVE_COLOUR),
    ]
    overview, layer, steps = ((page / f"{name}.js").read_text() for name in ("overview", "layer", "step_time"))
    styles = overview[overview.index("PLAN_STYLES = [") : overview.index("function planStyle")]
    assert tuple(re.findall(r"#[0-9a-f]{6}", styles)) == colours.PLAN_COLOURS[1:]
    (replicas,) = re.findall(r"REPLICA_COLOURS = \[(.*)\]", layer)
    assert tuple(re.findall(r"#[0-9a-f]{6}", replicas)) == colours.REPLICA_COLOURS
    assert {name: re.search(rf'{name}: {{.*color: "(.*?)"', steps)[1] for name in colours.STEP_COLOURS} == (
        colours.STEP_COLOURS
    )
