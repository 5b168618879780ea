"""TensorRT-LLM's YAML: whatever PyYAML's safe loader accepts is read as that loader reads it, or refused by name."""

import random

import pytest
import yaml

from eplb.errors import FormatError
from eplb.formats import ReadHints, read_plan
from eplb.formats.yaml_text import parse_yaml

TWO_RANKS = ReadHints(num_ranks=2)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("flow", [None, True, False])
@pytest.mark.parametrize("width", [20, 10**6])
def test_trtllm_files_of_pyyaml_are_read(flow, width, tmp_path):
    rows = {3: list(range(12)) * 2, 4: list(range(11, -1, -1)) * 2}
    data = {"num_slots": 24, "layer_updates_per_iter": 1, "initial_global_assignments": rows}
    path = write(tmp_path / "a.yaml", "# by hand\n" + yaml.dump(data, default_flow_style=flow, width=width))
    assert read_plan(path, hints=TWO_RANKS).placement.physical_to_logical_map.tolist() == list(rows.values())


@pytest.mark.parametrize(
    "text",
    [
        "---\nnum_slots: 2\ninitial_global_assignments:\n  3: [0, 1]\n  7: [1, 0]\n...\n",
        "%YAML 1.1\n---\n{num_slots: 2, initial_global_assignments: {3: [0, 1], 7: [1, 0]}}",
        '{"num_slots": 2, "initial_global_assignments": {"7": [1, 0], "3": [0, 1]}}',
        "num_slots: 0x2\n? initial_global_assignments\n: 3:\n  - 0\n  - +1\n  7: &a [1, 0x0]\n",
        "num_slots: 2\ninitial_global_assignments: !!map\n  3: &row [0, 1]\n  <<: {7: [1, 0], 3: *row}\n",
        "\ufeffnum_slots: 2 # two\ninitial_global_assignments: {3: [0,\n\n 1 # last\n], 7: [1, 0]}\r\n",
    ],
)
def test_trtllm_files_are_what_the_safe_loader_makes_of_them(text, tmp_path):
    plan = read_plan(write(tmp_path / "a.yaml", text), hints=TWO_RANKS)
    members = yaml.safe_load(text)["initial_global_assignments"]
    by_id = {int(layer): row for layer, row in members.items()}
    assert by_id == {3: [0, 1], 7: [1, 0]}
    assert plan.shape.moe_layer_ids == tuple(sorted(by_id))
    assert plan.placement.physical_to_logical_map.tolist() == [by_id[layer] for layer in sorted(by_id)]


GOOD_YAML = (
    "num_slots: 4\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n  3: [0, 1, 2, 0]\n  4: [2, 1, 0, 1]\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_slots: 4", "num_slots: 5", "layer 3 has 4 slots: expected num_slots = 5"),
        ("num_slots: 4\n", "", "key 'num_slots' is missing"),
        ("num_slots: 4", "num_slots: four", r"\$\.num_slots = 'four': expected an integer"),
        ("num_slots: 4", "num_slots: 4.0", r"\$\.num_slots = 4\.0: expected an integer"),
        ("num_slots: 4", "num_slots: 4\nnum_slots: 4", "line 2 column 1: key 'num_slots' is given twice"),
        ("num_slots: 4", "num_slots: 010", "layer 3 has 4 slots: expected num_slots = 8"),  # octal in YAML 1.1
        ("num_slots: 4", "version: 1\nnum_slots: 4", "'version': TensorRT-LLM refuses keys"),
        ("num_slots: 4", "\tnum_slots: 4", "not YAML, line 1"),
        ("num_slots: 4", "num_slots: 4\n---", "line 2 column 1: but found another document"),
        ("iter: 0", "iter: -1", "layer_updates_per_iter = -1"),
        ("iter: 0", "iter: yes", "layer_updates_per_iter = True"),
        ("  4: [", "  3: [", "line 5 column 3: key 3 is given twice"),
        ("  4: [", "  0x3: [", "line 5 column 3: key 3 is given twice"),
        ("  4: [", "  '3': [", "layer 3 is given as a number and as a string"),
        ("  4: [", "  x: [", "key 'x'.*absolute index"),
        ("  4: [", "  '04': [", "key '04'.*absolute index"),
        ("  4: [", "  -4: [", "key '-4'.*absolute index"),
        ("  4: [", "  true: [", "key 'True'.*absolute index"),
        ("  4: [", "    4: [", "line 5"),
        ("[2, 1, 0, 1]", "[2, 1, 0", "not YAML"),
        ("[2, 1, 0, 1]", "[2, 1, 0.5, 1]", r"\.4\[2\] = 0\.5: expected an integer"),
        ("[2, 1, 0, 1]", "[2, 1, true, 1]", r"\.4\[2\] = True: expected an integer"),
        ("[2, 1, 0, 1]", "&a [2, 1, 0, *a]", r"\.4\[3\] = a list: expected an integer"),
        ("[2, 1, 0, 1]", "[2, 1, 0]", "layer 4 has 3 slots"),
        ("[2, 1, 0, 1]", "", r"\.4 is null: expected a list"),
        ("[2, 1, 0, 1]", "\n  - 2\n  - x\n  - 0\n  - 1", r"\.4\[1\] = 'x': expected an integer"),
        ("[2, 1, 0, 1]", "[0, 1, 0, 1]", r"layer 1\]: expert 2 has no slot"),
        ("  3: [0, 1, 2, 0]\n  4: [2, 1, 0, 1]\n", "", "initial_global_assignments is null"),
        ("  3: [0, 1, 2, 0]\n  4: [2, 1, 0, 1]\n", "  {}\n", "is empty: expected a list of expert ids under each"),
        ("initial_global_assignments:\n  3: [0, 1, 2, 0]\n  4: [2, 1, 0, 1]\n", "", "holds no placement"),
        ("num_slots: 4", "--- !!python/object", "not YAML, line 1"),
        ("num_slots: 4", "when: !!timestamp never\nnum_slots: 4", "not YAML"),
        pytest.param("[2, 1, 0, 1]", "[" * 100_000, "nested more than 100 deep", id="deep flow"),
        pytest.param("[2, 1, 0, 1]", "\n  " + "- " * 100_000, "nested more than 100 deep", id="deep block"),
    ],
)
def test_broken_trtllm(old, new, message, tmp_path):
    assert old in GOOD_YAML
    path = write(tmp_path / "plan.yaml", GOOD_YAML.replace(old, new))
    with pytest.raises(FormatError, match=message) as caught:
        read_plan(path, hints=TWO_RANKS)
    assert str(path) in str(caught.value)


def outcome(parse, text):
    """What a parser makes of a text, or None where it raises."""
    try:
        return [parse(text)]
    except Exception:
        return None


def test_texts_are_accepted_as_the_safe_loader_accepts_them():
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        text = list(GOOD_YAML)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(2)] = rng.choice("[]{}:,-?&*!|>'\"%@#0x_ \n\t~<\r\ufeff\x85")
        text = "".join(text)
        expected, found = outcome(yaml.safe_load, text), outcome(lambda t: parse_yaml(t, "here"), text)
        if found is None and expected is not None:
            with pytest.raises(FormatError, match="given twice"):
                parse_yaml(text, "here")
        else:
            assert repr(found) == repr(expected), text
        refused += found is None
    assert 50 < refused < 550
