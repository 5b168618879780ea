"""Parts of the traffic, domains or files, beside each other; the hottest experts; co-activation of every layer."""

import numpy as np
import pytest

import eplb
from eplb.errors import InputError
from eplb.report import gather, pictures
from eplb.report.figures import layer_details, report_figures
from eplb.report.hottest import hottest_experts
from eplb.report.html_arrays import unpacked
from eplb.report.html_payload import payload
from eplb.report.pictures.coactivation_overview import block_lift
from eplb.report.pictures.load_by_part import share_factors
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch
from eplb_traces.coactivation.layer_coactivation import CoActivation, coactivation, coactivations
from eplb_traces.domain_load import NO_DOMAIN, load_by_domain
from tests.report.examples import SHAPE, TOPOLOGY, contents_of_trace, skewed, some_trace
from tests.report.test_picture_labels import tick_texts

pytest.importorskip("matplotlib")

NAMES = ("code", "chat", "prose")


def with_domains(names=NAMES, *, known=True):
    """The trace of the examples: step s is of domain s modulo 3; step 3 has no domain unless `known`."""
    batches = [
        TokenBatch(
            SHAPE,
            batch.expert_ids[batch.step == step],
            batch.step[batch.step == step],
            batch.request[batch.step == step],
            None,
            None if step == 3 and not known else np.full(int((batch.step == step).sum()), step % 3, np.int32),
        )
        for batch in some_trace().batches()
        for step in range(4)
    ]
    return RoutingTrace(SHAPE, batches, domain_names=names)


def of_domains():
    return gather(with_domains(), topology=TOPOLOGY)


def test_each_domain_has_the_load_of_its_tokens():
    load, by_step = load_by_domain(with_domains()), some_trace().load(1)
    assert load.labels == NAMES
    np.testing.assert_array_equal(load.tokens[0], by_step.tokens[0] + by_step.tokens[3])
    np.testing.assert_array_equal(load.tokens[1:], by_step.tokens[1:3])


def test_tokens_without_domain_and_domains_without_name_are_parts():
    load = load_by_domain(with_domains((), known=False))
    assert load.labels == ("domain 0", "domain 1", "domain 2", NO_DOMAIN)
    np.testing.assert_array_equal(load.tokens[3], some_trace().load(1).tokens[3])


def test_a_trace_of_one_domain_or_none_has_no_parts():
    assert load_by_domain(some_trace()) is None
    one = [
        TokenBatch(SHAPE, b.expert_ids, b.step, b.request, None, np.zeros(b.num_tokens, np.int32)) for b in some_trace()
    ]
    assert load_by_domain(RoutingTrace(SHAPE, one, domain_names=("code",))) is None


def test_plans_are_evaluated_domain_by_domain():
    contents = of_domains()
    for view in contents.plans:
        alone = [ExpertLoad(tokens, shape=SHAPE) for tokens in contents.parts.tokens]
        expected = [eplb.evaluate(view.placement, load).max_over_mean for load in alone]
        np.testing.assert_allclose(view.balance_by_part, expected)
    assert contents_of_trace().parts is None
    assert contents_of_trace().plans[0].balance_by_part is None


def test_bars_of_parts_are_the_means_of_their_layers():
    contents = of_domains()
    axes = pictures.draw_balance_by_part(contents.plans, contents.parts.labels)
    assert tick_texts(axes.yaxis) == list(NAMES)
    for view, bars in zip(contents.plans, axes.containers, strict=True):
        assert bars.get_label() == view.name
        np.testing.assert_allclose([bar.get_width() for bar in bars], view.balance_by_part.mean(axis=1))
        assert {bar.get_x() for bar in bars} == {0}
    assert f"{contents.plans[1].balance_by_part[2].mean():.2f}x" in [text.get_text() for text in axes.texts]
    with pytest.raises(InputError, match="plan experts in order: expected its balance in 3 parts"):
        pictures.draw_balance_by_part(contents_of_trace().plans, NAMES)


def test_parts_are_drawn_beside_each_other_over_the_whole():
    parts = of_domains().parts
    axes = pictures.draw_load_by_part(parts)
    panels = [panel for panel in axes.figure.axes if panel.get_title()]
    assert [panel.get_title().split(":")[0] for panel in panels] == list(NAMES)
    for panel, tokens in zip(panels, parts.tokens, strict=True):
        expected = share_factors(tokens, parts.tokens.sum(axis=0))
        np.testing.assert_allclose(panel.get_images()[0].get_array(), expected)
        assert panel.get_images()[0].get_clim() == (1 / 8, 8)
        assert tick_texts(panel.yaxis) == ["1", "2", "5"]


def test_of_two_parts_the_second_is_drawn_over_the_first():
    parts = ExpertLoad([[[100, 100, 0, 0]], [[100, 300, 0, 0]]], labels=["a", "b"])
    axes = pictures.draw_load_by_part(parts)
    (image,) = axes.get_images()
    # b has twice the tokens: 200 and 200 are expected, and the prior is five tokens of a.
    np.testing.assert_allclose(image.get_array(), [[110 / 210, 310 / 210, 1, 1]])
    assert axes.get_title() == "Share of the tokens in b\nover that in a"


def test_few_tokens_are_near_one_and_layers_without_tokens_are_left_out():
    reference = np.full((2, 4), 1000.0)
    few = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    factors = share_factors(few, reference)
    assert factors[0].max() < 1.2
    assert np.isnan(factors[1]).all()


def test_of_many_parts_the_largest_are_drawn_and_the_others_counted():
    tokens = np.ones((11, 1, 4)) * np.arange(1, 12)[:, None, None]
    axes = pictures.draw_load_by_part(ExpertLoad(tokens, labels=[f"part {i}" for i in range(11)]))
    titles = [panel.get_title() for panel in axes.figure.axes if panel.get_title()]
    assert [title.split(":")[0] for title in titles] == [f"part {i}" for i in range(3, 11)]
    assert titles[0] == "part 3: 16 choices of a layer; 3 smaller parts are not shown"


def test_parts_that_cannot_be_compared_are_refused():
    for load in (skewed(), skewed(num_windows=2)):
        with pytest.raises(InputError, match="expected at least two windows with labels"):
            pictures.draw_load_by_part(load)
    load = skewed(num_windows=2)
    with pytest.raises(InputError, match="parts: expected labels"):
        gather(load, topology=eplb.Topology(1, 4, 2), parts=load)
    with pytest.raises(InputError, match="parts of 2 layers x 8 experts: the load has 3 x 16"):
        gather(some_trace(), topology=TOPOLOGY, parts=load)


def test_files_beside_each_other_have_no_picture_over_time():
    load = ExpertLoad(skewed(num_windows=2).tokens, labels=["a", "b"])
    topology = eplb.Topology(1, 4, 2)
    for parts, over_time in ((load, False), (None, True)):
        contents = gather(load, topology=topology, parts=parts)
        names = {picture.name for picture in report_figures(contents, layer_details(contents, ()))}
        assert ("balance-over-windows" in names) is over_time
        assert ({"load-by-part", "balance-by-part"} <= names) is not over_time


def test_the_page_has_the_parts_that_the_folder_has():
    files = ExpertLoad(skewed(num_windows=2).tokens, labels=["monday.npz", "tuesday.npz"])
    of_files = gather(files, topology=eplb.Topology(1, 4, 2), parts=files)
    without = gather(with_domains(known=False), topology=TOPOLOGY)  # one step of no domain
    for contents, names in ((of_files, files.labels), (of_domains(), NAMES), (without, (*NAMES, NO_DOMAIN))):
        found = payload(contents)["domains"]
        assert found["names"] == list(names)
        np.testing.assert_array_equal(unpacked(found["load"]), contents.parts.tokens)
        expected = [tokens.sum() / contents.load.num_layers for tokens in contents.parts.tokens]
        np.testing.assert_allclose(found["choices"], expected, atol=0.5)
    for one in (gather(files, topology=eplb.Topology(1, 4, 2)), contents_of_trace()):
        assert payload(one)["domains"] is None


def test_the_hottest_experts_are_those_over_their_layers_mean():
    # Means 4 and 1: 8 is 2x, 3 is 3x; 6 is 1.5x.
    load = ExpertLoad([[8, 6, 1, 1], [0, 0, 3, 1]])
    assert hottest_experts(load, 3) == [(1, 2, 3, 3.0), (0, 0, 8, 2.0), (0, 1, 6, 1.5)]
    assert len(hottest_experts(load, 99)) == 3  # none at or below the mean
    assert hottest_experts(ExpertLoad(np.ones((1, 4))), 5) == []


def test_bars_of_the_hottest_experts_name_layer_expert_value_and_replicas():
    contents = contents_of_trace()
    axes = pictures.draw_hottest_experts(contents.load, contents.plans)
    found = hottest_experts(contents.load, 16)
    assert tick_texts(axes.yaxis) == [f"{(1, 2, 5)[hot.layer]}: {hot.expert}" for hot in found]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [hot.over_mean for hot in found])
    first = found[0]
    replicas = contents.plans[1].placement.logical_replica_count[first.layer, first.expert]
    assert axes.texts[0].get_text() == f"{first.over_mean:.1f}x, 1/{replicas}"
    pictures.draw_hottest_experts(ExpertLoad(np.ones((1, 4)))).figure.draw_without_rendering()


def test_every_layer_is_a_panel_of_the_overview():
    axes = pictures.draw_coactivation_overview(coactivations(some_trace()), SHAPE)
    panels = [panel for panel in axes.figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == ["1", "2", "5"]
    for layer, panel in enumerate(panels):
        lift = coactivation(some_trace(), layer).shrunk_lift()
        drawn = np.ma.filled(panel.get_images()[0].get_array(), np.nan)
        np.testing.assert_allclose(drawn, np.clip(lift, 1 / 4, 4))
    with pytest.raises(InputError, match="expected at least one layer"):
        pictures.draw_coactivation_overview((), SHAPE)


def test_neighbouring_experts_share_a_block_of_the_overview():
    found = coactivation(some_trace(), 0)
    lift = block_lift(found, 5)  # 16 experts in blocks of 4
    assert lift.shape == (4, 4)
    first, second = np.ix_(range(4), range(4)), np.ix_(range(4), range(4, 8))
    inside = found.pairs[first].sum() - found.expert_tokens[:4].sum()
    assert lift[0, 0] == pytest.approx((inside + 5) / (found.expected_pairs[first].sum() + 5))
    assert lift[0, 1] == pytest.approx((found.pairs[second].sum() + 5) / (found.expected_pairs[second].sum() + 5))
    unused = block_lift(CoActivation(0, np.diag([3, 0]), 3), 64)
    assert np.isnan(unused).all()


def test_shrunk_lift_is_near_one_for_rare_pairs():
    pairs = np.array([[900, 400, 1], [400, 900, 0], [1, 0, 2]])
    found = CoActivation(0, pairs, 1400)
    lift = found.shrunk_lift()
    assert abs(lift[1, 2] - 1) < 0.2
    assert np.isnan(lift.diagonal()).all()
    assert np.isnan(CoActivation(0, np.diag([3, 0]), 3).shrunk_lift()).all()


def test_overview_of_one_layer_of_many_experts():
    meet = np.zeros((512, 512), np.int64)
    meet[np.ix_([3, 500], [3, 500])] = 5
    axes = pictures.draw_coactivation_overview([CoActivation(0, meet, 9)], ModelShape(1, 512))
    assert axes.get_images()[0].get_array().shape == (64, 64)
    axes.figure.draw_without_rendering()


def test_a_notebook_shows_figures_of_several_panels():
    for axes in (
        pictures.draw_load_by_part(of_domains().parts),
        pictures.draw_coactivation_overview(coactivations(some_trace()), SHAPE),
    ):
        assert axes._repr_png_().startswith(b"\x89PNG")
