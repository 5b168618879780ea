"""The verdict at the top of the page, and the parts of the page that need no script."""

import re
from html import escape

import numpy as np
import pytest

import eplb
from eplb.report.contents import gather
from eplb.report.html import page
from eplb.report.html_static import verdict
from eplb.report.recommendation import recommend
from eplb_traces import ExpertLoad
from tests.report.examples import contents_of_trace, placement, skewed

STRATEGIES = ("linear", "zigzag", "greedy")
TOPOLOGY = eplb.Topology(1, 2, 2)
LOAD = ExpertLoad(np.array([[4.0, 3, 2, 1]]))


def _maps(*rows):
    return {f"plan {i}": eplb.Placement(np.array([row]), 4, TOPOLOGY) for i, row in enumerate(rows)}


def test_the_plan_with_the_lowest_balance_is_recommended():
    # Ranks hold 4 + 3 and 2 + 1 tokens (7 / 5), 4 + 2 and 3 + 1 (6 / 5), 4 + 1 and 3 + 2 (1).
    contents = gather(LOAD, _maps([0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]))
    found = recommend(contents.plans)
    assert found.index == 2
    assert found.sentence == (
        "Use plan 2: the busiest rank has 1.000x the mean load instead of 1.400x with plan 0. It moves 2 replicas to "
        "another rank."
    )


def test_of_equal_plans_the_first_one_is_kept():
    contents = gather(LOAD, _maps([0, 3, 1, 2], [1, 2, 0, 3], [0, 1, 2, 3]))
    found = recommend(contents.plans)
    assert found.index == 0
    assert found.sentence == "Keep plan 0: no other plan is better; the busiest rank has 1.000x the mean load."


def test_of_equal_better_plans_the_one_with_fewer_moves_is_chosen():
    # Two experts change their rank in both plans, but all six slots of three ranks are read from elsewhere in neither:
    # plan 1 also swaps the experts of a third rank.
    load = ExpertLoad(np.array([[4.0, 3, 2, 1, 2, 3]]))
    topology = eplb.Topology(1, 3, 2)
    rows = ([0, 1, 2, 3, 4, 5], [0, 3, 4, 5, 1, 2], [0, 3, 1, 2, 4, 5])
    maps = {f"plan {i}": eplb.Placement(np.array([row]), 6, topology) for i, row in enumerate(rows)}
    contents = gather(load, maps)
    moves = [view.migration.moved_copies for view in contents.plans[1:]]
    assert moves == [5, 2]
    assert recommend(contents.plans).index == 2


def _table(text):
    rows = re.findall(r"<tr.*?</tr>", text)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd] .*?</t[hd]>", row)] for row in rows]


def test_the_table_has_the_numbers_of_evaluate():
    plans = {name: placement(name) for name in STRATEGIES}
    contents = gather(contents_of_trace().trace, plans)
    head, *rows = _table(verdict(contents.plans))
    best = recommend(contents.plans).index
    assert [row[0] for row in rows] == [
        f"{name} recommended" if index == best else name for index, name in enumerate(STRATEGIES)
    ]
    for view, row in zip(contents.plans, rows, strict=True):
        judged = eplb.evaluate(view.placement, contents.load).summary()
        shown = dict(zip(head, row, strict=True))
        assert shown["max/mean load"] == f"{judged['max_over_mean_mean']:.3f}"
        assert shown["worst layer"] == f"{judged['max_over_mean_worst']:.3f}"
        assert shown["above bound"] == f"{100 * judged['gap_mean']:.2f} %"
    assert rows[0][head.index("replicas moved")] == "\N{EN DASH}"


def test_columns_without_values_are_left_out():
    head, *_ = _table(verdict(gather(skewed(), topology=eplb.Topology(1, 4, 3)).plans))
    assert head == ["plan", "max/mean load", "worst layer", "above bound", "slots/layer", "replicas moved"]


def test_summary_and_verdict_are_html_and_not_made_by_a_script():
    contents = contents_of_trace()
    text = page(contents).partition("<script")[0]
    for sentence in "\n".join(contents.summary_text).splitlines():
        assert f"<li>{escape(sentence)}</li>" in text
    assert f"Summary of every layer ({contents.load.num_layers})" in text
    assert recommend(contents.plans).sentence in text


@pytest.mark.parametrize("name", ["<b>bold</b>", 'a" onclick="x', "{{payload}}"])
def test_names_are_escaped(name):
    contents = gather(LOAD, {name: _maps([0, 3, 1, 2])["plan 0"]})
    text = page(contents).partition("<script")[0]
    assert "<b>" not in text
    assert 'onclick="x' not in text
    assert '"num_layers"' not in text  # the payload stands in its script alone
