"""The table of engines' dispatch rules: which row options select, and what is refused."""

import pytest

from eplb.core.dispatch_rule import DispatchRule
from eplb.dispatch.engine_dispatch import ENGINE_DISPATCH, ENGINES, engine_dispatch, option_values
from eplb.errors import InputError


@pytest.mark.parametrize(
    ("engine", "options", "rule", "flags"),
    [
        ("sglang", {}, DispatchRule.SGLANG_STATIC, "--moe-a2a-backend deepep --ep-dispatch-algorithm static"),
        (
            "sglang",
            {"algorithm": "dynamic", "a2a": "mooncake"},
            DispatchRule.SGLANG_DYNAMIC,
            "--moe-a2a-backend mooncake --ep-dispatch-algorithm dynamic",
        ),
        (
            "sglang",
            {"a2a": "none"},
            DispatchRule.SGLANG_BY_ROW,
            "--moe-a2a-backend none --ep-dispatch-algorithm dynamic",
        ),
        (
            "sglang",
            {"map": "rebalanced", "algorithm": "dynamic"},
            DispatchRule.EVEN,
            "--enable-eplb --moe-a2a-backend deepep --ep-dispatch-algorithm dynamic",
        ),
        ("vllm", {}, DispatchRule.VLLM, ""),
        ("ascend", {}, DispatchRule.ASCEND, "--tensor-parallel-size 1"),
        ("trtllm", {}, DispatchRule.TRTLLM, ""),
    ],
)
def test_options_choose_the_rule_and_its_flags(engine, options, rule, flags):
    chosen = engine_dispatch(engine, options)
    assert (chosen.rule, chosen.flags) == (rule, flags)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("sglang", {"a2a": "none", "algorithm": "static"}, "SGLang refuses static and lp without an all-to-all"),
        ("sglang", {"a2a": "none", "algorithm": "lp"}, "SGLang refuses static and lp without an all-to-all"),
        ("sglang", {"algorithm": "lp"}, "no rule describes lp"),
        ("sglang", {"a2a": "nccl"}, "a2a = 'nccl': expected one of deepep, .*none"),
        ("sglang", {"tp": "2"}, "unknown option 'tp': expected a2a, algorithm, map"),
        ("ascend", {"tp": "4"}, "rotates the replica by TP rank"),
        ("vllm", {"a2a": "none"}, "unknown option 'a2a': expected none, its rule depends on no option"),
        ("ollama", {}, "unknown engine 'ollama': expected one of ascend, deepseek"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(engine, options, message):
    with pytest.raises(InputError, match=message):
        engine_dispatch(engine, options)


def test_every_case_of_the_table_can_be_reached():
    for row in ENGINE_DISPATCH:
        given = {name: values[-1] for name, values in row.options.items()}
        if row.rule is None:
            with pytest.raises(InputError, match="engine"):
                engine_dispatch(row.engine, given)
        else:
            assert engine_dispatch(row.engine, given).row is row


def test_no_two_cases_of_an_engine_overlap():
    for engine in ENGINES:
        rows = [row for row in ENGINE_DISPATCH if row.engine == engine]
        for i, first in enumerate(rows):
            for second in rows[i + 1 :]:
                assert any(
                    not set(first.options[name]) & set(second.options[name])
                    for name in first.options.keys() & second.options.keys()
                )


def test_every_engine_rule_has_a_row():
    """A rule named after an engine that no row leads to could never be chosen."""
    general = {DispatchRule.EVEN, DispatchRule.WEIGHTED, DispatchRule.ONLINE, DispatchRule.LOCAL_FIRST}
    assert {row.rule for row in ENGINE_DISPATCH if row.rule is not None} | general == set(DispatchRule)
    assert option_values("vllm") == {}
