"""Each check of the verifier by hand: what a correct layer looks like, and one wrong observation at a time.

Two ranks of two slots, each on a process of its own, three experts, two choices a token:

    layer 1: slots 0 to 3 hold experts 1, 2 | 0, 1       token 0 and 1 of rank 0, token 0 of rank 1
    choices by expert: (1, 2)  (1, 0)  (0, masked)       by slot, replica = index % count: (0, 1)  (3, 2)  (2, masked)
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import choose_slots, no_quotas, online_quotas
from eplb.runtime.verification.checks import CHECKS, Finding, _noise, judge, max_error
from eplb.runtime.verification.observations import LayerCase, LayerSeen, ModeSeen, Refused
from eplb.runtime.verification.probe_experts import probe_weight
from eplb.runtime.weights.fingerprint import fingerprint

PLACEMENT = Placement([[0, 1, 2, 0], [1, 2, 0, 1], [0, 1, 2, -1]], 3, Topology(1, 2, 2))
EXPERTS_OF_SLOTS = [1, 2, 0, 1]
CHOICES = torch.tensor([[1, 2], [1, 0], [0, -1]])
SLOTS = torch.tensor([[0, 1], [3, 2], [2, -1]])
RANKS, INDICES = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
TOKENS_OF_PROCESS = (slice(0, 2), slice(2, 3))
SLOTS_OF_PROCESS = (slice(0, 2), slice(2, 4))
WEIGHTS = torch.tensor([[0.5, 0.25], [0.75, 0.25], [1.0, 0.0]])
HIDDEN = torch.tensor([[1.0, 2, 0, -1], [3, 0, 1, 1], [-2, 1, 1, 0]])
NO_DROPS = torch.zeros(4, dtype=torch.int64)


def expected(hidden):
    """The sum over choices of weight times token times the expert's matrix."""
    rows = []
    for token in range(3):
        row = torch.zeros(4)
        for choice in range(2):
            if CHOICES[token, choice] >= 0:
                matrix = probe_weight(1, int(CHOICES[token, choice]), hidden=4)
                row += WEIGHTS[token, choice] * (hidden[token] @ matrix)
        rows.append(row)
    return torch.stack(rows)


def mode(process, slots=SLOTS):
    stamps = [
        (int(slot), int(RANKS[token]), int(INDICES[token]))
        for token in range(3)
        for slot in slots[token]
        if int(slot) in range(2 * process, 2 * process + 2)
    ]
    own = TOKENS_OF_PROCESS[process]
    return ModeSeen(
        kept_TK=slots[own],
        dropped_P=NO_DROPS,
        rows_per_slot_S=torch.bincount(slots[slots >= 0], minlength=4)[SLOTS_OF_PROCESS[process]],
        stamp_M3=torch.tensor(sorted(stamps)),
        num_poisoned=0,
        exact_TH=expected(HIDDEN)[own],
        real_TH=expected(HIDDEN / 3)[own],
        dispatch_RR=torch.tensor([[1, 1], [0, 0]] if process == 0 else [[0, 0], [0, 1]]),
        combine_RR=torch.zeros((2, 2), dtype=torch.int64),
    )


def layer_seen(process, slots=SLOTS):
    own = TOKENS_OF_PROCESS[process]
    experts = EXPERTS_OF_SLOTS[SLOTS_OF_PROCESS[process]]
    return LayerSeen(
        epoch=3,
        phy2log_P=torch.tensor(EXPERTS_OF_SLOTS),
        log2phy_EX=torch.tensor([[2, -1, -1], [0, 3, -1], [1, -1, -1]]),
        logcnt_E=torch.tensor([1, 2, 1]),
        expert_ids_TK=CHOICES[own],
        weight_TK=WEIGHTS[own],
        rank_T=RANKS[own],
        index_T=INDICES[own],
        slot_TK=slots[own],
        exact_x_TH=HIDDEN[own],
        real_x_TH=HIDDEN[own] / 3,
        fingerprints=[int(fingerprint(probe_weight(1, expert, hidden=4))) for expert in experts],
        recorded_E=torch.tensor([[1, 2, 1], [1, 0, 0]][process]),
        modes={"one": mode(process, slots), "two": mode(process, slots)},
        migrated_TH=expected(HIDDEN)[own],
        migrated_epoch=4,
        graph_error="",
    )


def layer_case(rule=DispatchRule.SGLANG_BY_ROW, slots=SLOTS, *, may_drop=False):
    return LayerCase(PLACEMENT, 1, rule, [layer_seen(process, slots) for process in range(2)], may_drop)


def changed(process, **fields):
    """The case with other observations of one process."""
    case = layer_case()
    return replace(case, seen=[replace(one, **fields) if at == process else one for at, one in enumerate(case.seen)])


def changed_mode(process, name="two", *, may_drop=False, **fields):
    """The case with other observations of one exchange mode of one process."""
    case = layer_case(may_drop=may_drop)
    seen = [
        replace(one, modes={**one.modes, name: replace(one.modes[name], **fields)}) if at == process else one
        for at, one in enumerate(case.seen)
    ]
    return replace(case, seen=seen)


def plus(tensor, *index, by=1):
    tensor = tensor.clone()
    tensor[index] += by
    return tensor


def slots_under(rule):
    tables = PlacementTables(PLACEMENT, rule)
    tables.epoch_L[1] = 3
    case = layer_case(rule)
    quotas = no_quotas("cpu")
    if rule is DispatchRule.ONLINE:
        quotas = online_quotas(torch.tensor([[1, 2, 1], [1, 0, 0]]), tables, 1)
    return choose_slots(CHOICES, case.source, tables, 1, quotas)


RULES = [rule for rule in DispatchRule if rule is not DispatchRule.WEIGHTED]


@pytest.mark.parametrize("rule", RULES)
def test_a_correct_layer_passes_every_check(rule):
    slots = slots_under(rule)
    assert judge(layer_case(rule, slots)) == [Finding(name, "") for name in CHECKS]
    assert judge(layer_case(rule, slots, may_drop=True)) == [Finding(name, "") for name in CHECKS]


def test_the_slots_of_the_example_are_those_of_the_rule():
    assert slots_under(DispatchRule.SGLANG_BY_ROW).tolist() == SLOTS.tolist()


@pytest.mark.parametrize(
    ("check", "case", "failure"),
    [
        ("maps", changed(1, phy2log_P=torch.tensor([1, 2, 1, 0])), "process 1 has expert 1 in slot 2, the plan has 0"),
        ("maps", changed(0, logcnt_E=torch.tensor([1, 2, 2])), "process 0 has other replica counts than the plan"),
        (
            "maps",
            changed(1, log2phy_EX=torch.tensor([[2, -1, -1], [3, 0, -1], [1, -1, -1]])),
            "process 1: its map from experts to slots is not the inverse of the plan's",
        ),
        (
            "maps",
            changed(1, log2phy_EX=torch.tensor([[2, -1, -1], [0, 3, 1], [1, -1, -1]])),
            "process 1: its map from experts to slots is not the inverse of the plan's",
        ),
        ("maps", changed(1, epoch=2), "epochs of the maps by process [3, 2]: expected one"),
        ("weights", changed(1, fingerprints=[1, 2]), "slot 2 does not hold the weight of expert 0"),
        (
            "replicas",
            changed(1, slot_TK=torch.tensor([[1, -1]])),
            "token 2, choice 0 (expert 0) went to slot 1: the rule sglang_by_row names slot 2",
        ),
        (
            "conservation",
            changed_mode(1, rows_per_slot_S=torch.tensor([1, 1])),
            "two: slot 2 computed 1 rows for 2 selections",
        ),
        (
            "conservation",
            changed_mode(1, may_drop=True, dropped_P=torch.tensor([0, 0, 0, 1])),
            "two: slot 3 computed 1 rows for 0 selections",
        ),
        ("poison", changed_mode(1, num_poisoned=7), "two: process 1 read 7 uninitialised values"),
        (
            "provenance",
            changed_mode(0, stamp_M3=torch.tensor([[0, 0, 1], [1, 0, 0]])),
            "two: slot 0 computed token 1 of rank 0, which did not choose it",
        ),
        (
            "provenance",
            changed_mode(0, stamp_M3=torch.tensor([[0, 0, 0], [1, 1, 0]])),
            "two: slot 1 computed token 0 of rank 1, which did not choose it",
        ),
        ("drops", changed(1, modes={"one": mode(1), "two": Refused("row 9 is too much")}), "two: row 9 is too much"),
        (
            "drops",
            changed_mode(0, rows_per_slot_S=torch.tensor([0, 1])),
            "two: 1 selections of slot 0 were neither computed nor counted as dropped",
        ),
        (
            "drops",
            changed_mode(1, rows_per_slot_S=torch.tensor([0, 1])),
            "two: 2 selections of slot 2 were neither computed nor counted as dropped",
        ),
        (
            "drops",
            changed_mode(1, rows_per_slot_S=torch.tensor([0, 1]), dropped_P=torch.tensor([0, 0, 1, 0])),
            "two: 1 selections of slot 2 were neither computed nor counted as dropped",
        ),
        (
            "numerics",
            changed_mode(0, exact_TH=plus(expected(HIDDEN)[:2], 1, 3)),
            "two: 1 tokens differ from the reference, the first is token 1",
        ),
        (
            "numerics",
            changed_mode(0, real_TH=plus(expected(HIDDEN / 3)[:2], 0, 0, by=float("nan"))),
            "largest error inf of real numbers: expected at most 1e-05",
        ),
        (
            "load",
            changed(1, recorded_E=torch.tensor([0, 0, 0])),
            "expert 0: 1 selections were recorded: the router made 2",
        ),
        ("migration", changed(1, migrated_epoch=3), "epochs after publishing [4, 3]: expected 4 everywhere"),
        (
            "migration",
            changed(1, migrated_TH=plus(expected(HIDDEN)[2:], 0, 2)),
            "token 2 has another result after the experts moved",
        ),
        ("graph", changed(1, graph_error="other slots"), "process 1: other slots"),
    ],
)
def test_a_wrong_observation_fails_its_check_with_its_place(check, case, failure):
    assert CHECKS[check](case) == failure


def test_rows_without_a_copy_that_was_sent_are_refused():
    case = layer_case()
    silent = [replace(mode(process), dispatch_RR=torch.zeros((2, 2), dtype=torch.int64)) for process in range(2)]
    case = replace(case, seen=[replace(one, modes={"one": silent[at]}) for at, one in enumerate(case.seen)])
    assert CHECKS["conservation"](case) == "one: 5 rows were computed but no copy was sent"


def test_drops_that_are_counted_pass_where_they_are_allowed():
    # AllGather drops one of the two rows of slot 2 after they arrived: the source still lists both.
    left = {"rows_per_slot_S": torch.tensor([1, 1]), "stamp_M3": torch.tensor([[2, 0, 1], [3, 0, 1]])}
    dropped = {"dropped_P": torch.tensor([0, 0, 1, 0]), "exact_TH": torch.zeros((1, 4)), "real_TH": torch.ones((1, 4))}
    case = changed_mode(1, may_drop=True, **left, **dropped)
    assert [finding.check for finding in judge(case) if finding.failure] == []
    assert max_error(case) < 1e-6
    failed = {finding.check for finding in judge(replace(case, may_drop=False)) if finding.failure}
    assert failed == {"conservation", "numerics"}


def test_the_error_is_relative_to_the_largest_number_of_the_reference():
    largest = float(expected(HIDDEN / 3).abs().max())
    assert max_error(layer_case()) < 1e-6
    for process, name, by in ((0, "one", 0.5), (1, "two", -0.25)):
        own = expected(HIDDEN / 3)[TOKENS_OF_PROCESS[process]]
        case = changed_mode(process, name, real_TH=plus(own, 0, 1, by=by))
        assert max_error(case) == pytest.approx(abs(by) / largest, rel=1e-5)
    at_the_limit = changed_mode(0, real_TH=plus(expected(HIDDEN / 3)[:2], 0, 0, by=2e-5 * largest))
    assert CHECKS["numerics"](at_the_limit) == "largest error 2.00e-05 of real numbers: expected at most 1e-05"


def test_a_layer_without_tokens_passes_every_check():
    no_copies = torch.zeros((2, 2), dtype=torch.int64)
    seen = []
    for one in layer_case().seen:
        fields = (
            "expert_ids_TK",
            "weight_TK",
            "rank_T",
            "index_T",
            "slot_TK",
            "exact_x_TH",
            "real_x_TH",
            "migrated_TH",
        )
        empty = replace(one, recorded_E=torch.zeros(3, dtype=torch.int64), **{f: getattr(one, f)[:0] for f in fields})
        mode = replace(one.modes["one"], rows_per_slot_S=NO_DROPS[:2], dispatch_RR=no_copies)
        mode = replace(mode, **{f: getattr(mode, f)[:0] for f in ("kept_TK", "stamp_M3", "exact_TH", "real_TH")})
        seen.append(replace(empty, modes={"one": mode}))
    case = replace(layer_case(), seen=seen)
    assert judge(case) == [Finding(name, "") for name in CHECKS]
    assert max_error(case) == 0


def test_a_rank_with_other_rows_than_its_fixed_rule_predicts_is_named():
    # vllm-ascend: rank r takes replica r % count, so both tokens of rank 0 send expert 1 to slot 0: 3 rows and 2.
    slots = torch.tensor([[0, 1], [0, 2], [2, -1]])
    case = layer_case(DispatchRule.ASCEND, slots)
    assert CHECKS["load"](case) == ""
    one_more = mode(1, slots)
    one_more = replace(one_more, rows_per_slot_S=one_more.rows_per_slot_S + torch.tensor([1, 0]))
    wrong = replace(case, seen=[case.seen[0], replace(case.seen[1], modes={"one": one_more, "two": mode(1, slots)})])
    assert CHECKS["load"](wrong) == (
        "rank 1 got 3 rows: the rule ascend predicts 2.0, the difference exceeds its noise"
    )
    case = replace(case, seen=layer_case(DispatchRule.ASCEND, SLOTS).seen)
    assert CHECKS["load"](case) == ("rank 0 got 2 rows: the rule ascend predicts 3.0, the difference exceeds its noise")


@pytest.mark.parametrize(
    ("rule", "noise"),
    [
        # Rank 0 and 1 hold one replica each of an expert with 2 selections: variance 2 / 4 each.
        (DispatchRule.EVEN, 6 * 0.5**0.5 + 1),
        (DispatchRule.LOCAL_FIRST, 6 * 0.5**0.5 + 1),
        (DispatchRule.VLLM, 6 * (0.5 * 2) ** 0.5 + 1),
        (DispatchRule.SGLANG_BY_ROW, 6 * (0.5 * 2) ** 0.5 + 1),
        (DispatchRule.TRTLLM, 2 + 1),  # ranks and blocks, for one replica
        (DispatchRule.ONLINE, 0),
        (DispatchRule.ASCEND, 0),
        (DispatchRule.SGLANG_STATIC, 0),
    ],
)
def test_the_noise_of_a_rule(rule, noise):
    case = layer_case(rule)
    assert _noise(case) == pytest.approx([noise, noise])
    assert _noise(replace(case, layer=0)) == pytest.approx([noise, noise])  # expert 0 has the replicas
    assert _noise(replace(case, layer=2)).tolist() == [0, 0]  # an empty slot, and no replicas


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1024, 1), (1025, 2)])
def test_round_robin_starts_anew_in_each_block(num_tokens, num_blocks):
    seen = replace(
        layer_seen(0),
        expert_ids_TK=torch.ones((num_tokens, 1), dtype=torch.int64),
        rank_T=torch.zeros(num_tokens, dtype=torch.int64),
        index_T=torch.arange(num_tokens),
    )
    noise = _noise(LayerCase(PLACEMENT, 1, DispatchRule.TRTLLM, [seen], may_drop=False))
    assert np.array_equal(noise, [2 + num_blocks] * 2)
