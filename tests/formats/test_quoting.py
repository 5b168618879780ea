"""A path with spaces and quotes is one word of a shell, and one scalar of YAML, in the lines for engines."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

import eplb
from eplb.formats import FORMATS

ODD = '/tmp/it\'s a "plan" $HOME: x #1'


@pytest.fixture
def made():
    return eplb.plan([[9.0, 3.0, 2.0, 2.0]], eplb.Topology(1, 2, 2))


@pytest.mark.parametrize("name", ["sglang", "vllm", "ascend", "native"])
def test_lines_for_a_shell(made, name):
    path = Path(f"{ODD}.json")
    *_, line = FORMATS[name].server_flags(path, made).splitlines()
    words = shlex.split(line.partition(": ")[2] if name == "native" else line)
    values = [value for word in words for value in (_texts(json.loads(word)) if word.startswith("{") else [word])]
    assert str(path) in values


@pytest.mark.parametrize(("name", "suffix"), [("omni", ".npy"), ("trtllm", ".yaml")])
def test_lines_of_yaml(made, name, suffix):
    path = Path(f"{ODD}{suffix}")
    assert str(path) in _texts(yaml.safe_load(FORMATS[name].server_flags(path, made)))


def test_a_plain_path_stays_plain(made):
    assert "--init-expert-location plan/a-b_1.json " in FORMATS["sglang"].server_flags(Path("plan/a-b_1.json"), made)
    assert "load_balancer: plan/a-b_1.yaml" in FORMATS["trtllm"].server_flags(Path("plan/a-b_1.yaml"), made)


def _texts(value):
    return [text for of in value.values() for text in _texts(of)] if isinstance(value, dict) else [value]
