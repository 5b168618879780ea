"""eplb.toml and the variables EPLB_*: what is not typed is taken from them, checked as if it had been typed."""

import json
import re

import pytest

from eplb_cli.arguments.toml_file import read_toml
from eplb_cli.exit_codes import ExitCode
from eplb_cli.settings import SETTINGS, Setting, applicable, misspelt_variables, read_settings, variable
from tests.pages import REPOSITORY

GREEDY = ("--strategy", "greedy", "--json")


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Write eplb.toml into the working directory."""
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "eplb.toml").write_text


def _topology(result):
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    return found["num_ranks"], found["num_slots"]


def test_the_command_line_comes_before_the_environment_before_the_file_before_the_default(run, load_path, toml):
    toml("ranks = 8\nredundant = 8\n")
    asked = ("plan", load_path, *GREEDY)
    assert _topology(run(*asked)) == (8, 24)
    assert _topology(run(*asked, env={"EPLB_RANKS": "4"})) == (4, 24)
    assert _topology(run(*asked, "--ranks", 2, env={"EPLB_RANKS": "4"})) == (2, 24)
    toml("")
    assert _topology(run(*asked, "--ranks", 2)) == (2, 16)


def test_the_source_of_every_value_is_shown(run, load_path, toml):
    toml('ranks = 8\nnodes = 2\nengine = "sglang"\nengine-option = ["a2a=none"]\n')
    result = run("plan", load_path, *GREEDY, env={"EPLB_REDUNDANT": "8"})
    assert result.stderr == (
        "from eplb.toml: ranks = 8, nodes = 2, engine = sglang, engine-option = a2a=none\n"
        "from EPLB_REDUNDANT: redundant = 8\n"
    )
    found = json.loads(result.stdout)
    assert (found["engine"], found["dispatch"]) == ("sglang", "sglang_by_row")
    assert run("formats").stderr == ""


def test_nodes_may_be_a_list_and_another_file_may_be_named(run, load_path, tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text("nodes = [3, 1]\n")
    for words, variables in ((("--config", path), {}), ((), {"EPLB_CONFIG": str(path)})):
        result = run(*words, "plan", load_path, *GREEDY, env=variables)
        assert f"from {path}: nodes = 3,1\n" in result.stderr
        assert _topology(result) == (4, 16)
    assert run("--config", tmp_path / "missing.toml", "plan", load_path).exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("rank = 4\n", 3, "eplb.toml: unknown key 'rank': did you mean ranks? expected only ranks, nodes"),
        ("ranks = true\n", 3, "eplb.toml: ranks = True: expected a text or a number"),
        ("[ranks]\nR = 4\n", 3, "eplb.toml: ranks = {'R': 4}: expected a text or a number"),
        ("ranks = \n", 3, "eplb.toml: not TOML"),
        ("ranks = 4.5\n", 2, "(from eplb.toml)"),
        ('ranks = "many"\n', 2, "(from eplb.toml)"),
        ('ranks = 4\nengine = "sglng"\n', 2, "did you mean sglang?"),
        ('ranks = 4\nnodes = "a"\n', 2, "expected a number of nodes"),
    ],
)
def test_a_wrong_file_is_refused_by_name(run, load_path, toml, text, code, message):
    toml(text)
    result = run("plan", load_path)
    assert (result.exit_code, result.stdout) == (code, "")
    flat = " ".join(result.stderr.replace("│", " ").split())
    assert message in flat
    assert "eplb.toml" in flat
    assert run("plan", "--help").exit_code == 0


def test_what_other_options_exclude_is_not_taken(run, load_path, plan_path, toml):
    toml('ranks = 8\nredundant = 8\ngroups = 4\nengine = "sglang"\nmodel = "moe-435m"\ncalibration = "h200"\n')
    kept = run("plan", load_path, "--previous", plan_path, "--json")
    assert (kept.exit_code, kept.stderr) == (0, "from eplb.toml: engine = sglang\n")
    assert json.loads(kept.stdout)["dispatch"] == "sglang_static"
    ruled = run("plan", load_path, *GREEDY, "--dispatch", "weighted")
    assert ruled.stderr == "from eplb.toml: ranks = 8, redundant = 8, groups = 4\n"
    assert json.loads(ruled.stdout)["dispatch"] == "weighted"


@pytest.mark.parametrize(
    ("command", "typed", "keys"),
    [
        ("compare", (), tuple(SETTINGS)),
        ("compare", ("--sources",), ("ranks", "nodes", "redundant", "groups", "engine", "engine-option")),
        ("compare", ("--engine",), ("ranks", "nodes", "redundant", "groups", "model", "calibration")),
        ("plan", ("--mindie-config",), ("groups", "engine", "engine-option")),
        (
            "plan",
            ("--phase", "--ranks"),
            ("nodes", "redundant", "groups", "engine", "engine-option", *tuple(SETTINGS)[6:]),
        ),
        ("diff", (), ("groups", "engine", "engine-option", "model", "calibration")),
        ("replay", ("--plan",), ("ranks", "nodes", "engine", "engine-option", "model", "calibration")),
    ],
)
def test_the_settings_that_a_command_uses(command, typed, keys):
    settings = {key: Setting(("x",), "eplb.toml") for key in SETTINGS}
    assert tuple(applicable(command, settings, typed)) == keys


def test_a_model_without_a_calibration_is_not_used():
    settings = {"model": Setting(("moe-435m",), "eplb.toml")}
    assert applicable("compare", settings, ()) == {}
    assert applicable("compare", settings, ("--calibration",)) == settings


def test_an_option_that_means_something_else_is_left_alone(run, load_path, toml):
    """`sweep --redundant` is a range, `trace info --ranks` a list."""
    toml("ranks = 4\nredundant = 8\n")
    result = run("sweep", load_path, "--redundant", "0:8:8", "--json")
    assert result.stderr == "from eplb.toml: ranks = 4\n"
    assert len(json.loads(result.stdout)["points"]) == 2
    assert run("trace", "info", load_path, "--json").stderr == ""


def test_a_misspelt_variable_is_noticed(run, load_path):
    assert misspelt_variables(
        {"EPLB_RANK": "4", "EPLB_REGISTER": "vllm", "EPLB_POLICY_PLAN": "x", "EPLB_RANKS": "4"}
    ) == {"EPLB_RANK": "EPLB_RANKS"}
    result = run("plan", load_path, "--ranks", 4, env={"EPLB_REDUNDAND": "4"})
    assert result.stderr.startswith("note: EPLB_REDUNDAND is not read: did you mean EPLB_REDUNDANT?\n")


def test_an_empty_variable_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings(None, {"EPLB_RANKS": ""}) == {}
    assert read_settings(None, {"EPLB_ENGINE_OPTION": "a2a=none,algorithm=dynamic"}) == {
        "engine-option": Setting(("a2a=none", "algorithm=dynamic"), "EPLB_ENGINE_OPTION")
    }


def test_a_key_that_is_like_none_gets_the_list_alone(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("zzz = 1\n")
    with pytest.raises(Exception, match="unknown key 'zzz': expected only pin, forbid"):
        read_toml(path, ("pin", "forbid"))


def test_the_manual_has_every_key():
    page = (REPOSITORY / "docs" / "how-to" / "settings.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)`", page, re.MULTILINE)
    assert rows == [(key, variable(key)) for key in SETTINGS]
