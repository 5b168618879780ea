"""The help of every command: panels, examples that parse, a page of the manual, no type of a flag."""

import re
import shlex

import pytest
import typer.main

from eplb_cli.help.examples import EXAMPLES
from eplb_cli.help.panels import COMMAND_PANELS, OPTION_PANELS
from eplb_cli.main import app
from tests.pages import REPOSITORY


def commands_of(command, *path):
    """{path: command} of the tree below a group, groups left out."""
    nested = getattr(command, "commands", None)
    if nested is None:
        return {" ".join(path): command}
    return {name: of for word, below in nested.items() for name, of in commands_of(below, *path, word).items()}


ROOT = typer.main.get_command(app)
COMMANDS = commands_of(ROOT)


def _options(command):
    return [param for param in command.params if param.param_type_name == "option"]


@pytest.fixture(scope="module")
def helps(run):
    return {name: run(*name.split(), "--help", env={"COLUMNS": "120"}).stdout for name in COMMANDS}


def test_every_option_is_in_exactly_one_panel():
    listed = [name for names in OPTION_PANELS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {option.opts[0] for command in COMMANDS.values() for option in _options(command)}


def test_the_help_of_a_command_shows_its_options_in_panels(helps):
    for name, command in COMMANDS.items():
        panels = re.findall(r"^╭─ (.+?) ─+╮$", helps[name], re.MULTILINE)
        in_panels = {option.rich_help_panel for option in _options(command)}
        assert set(panels) - {"Arguments", "Options"} == in_panels, name
        order = [panel for panel in OPTION_PANELS if panel in in_panels]
        assert [panel for panel in panels if panel in in_panels] == order, name


def test_every_command_is_in_exactly_one_panel(run):
    listed = [name for names in COMMAND_PANELS.values() for name in names]
    assert sorted(listed) == sorted(ROOT.commands)
    shown = run("--help").stdout
    assert [panel for panel in COMMAND_PANELS if f"─ {panel} ─" not in shown] == []


def test_no_flag_shows_a_type(helps, run):
    for name, shown in {**helps, "": run("--help").stdout, "trace": run("trace", "--help").stdout}.items():
        assert "--help" in shown
        assert not re.search("bool", shown, re.IGNORECASE), name


def test_the_help_ends_with_two_examples_and_a_page_of_the_manual(helps):
    assert list(EXAMPLES) == list(COMMANDS)
    for name, (page, lines) in EXAMPLES.items():
        shown = " ".join(helps[name].split())
        assert len(set(lines)) == 2
        assert f"Examples: {lines[0]} {lines[1]} Manual: {page}" in shown, name
        assert (REPOSITORY / page).is_file()
        assert f"eplb {name}" in (REPOSITORY / page).read_text() or page.startswith("docs/reference/"), name


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_command_lines_that_parse(name):
    root = typer.main.get_command(app)
    for line in EXAMPLES[name].lines:
        words = shlex.split(line)
        path = name.split()
        assert words[: 1 + len(path)] == ["eplb", *path]
        assert len(line) <= 78
        context = root.make_context("eplb", words[1:], resilient_parsing=False)
        command = COMMANDS[name]
        command.make_context(path[-1], words[1 + len(path) :], parent=context)


def test_a_paragraph_of_the_help_is_not_broken_by_the_source(run):
    assert "3 bad input, 4 infeasible" in run("--help", env={"COLUMNS": "120"}).stdout


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("check", "--experts", "--num-experts"),
        ("convert", "--experts", "--num-experts"),
        ("convert", "--layers", "--num-layers"),
        ("diff", "--experts", "--num-experts"),
        ("plan", "--format", "--to"),
        ("plan", "-f", "--to"),
        ("evaluate", "--format", "--plan-from"),
        ("report", "--layer", "--layers"),
        ("verify", "--format", "--from"),
        ("verify", "--tokens", "--tokens-per-rank"),
        ("verify", "--hidden", "--hidden-size"),
        ("replay", "--strategy", "--strategies"),
        ("advise", "--gpu", "--calibration"),
        ("advise", "--plot", "--output"),
        ("trace synth", "--windows", "--num-windows"),
        ("trace merge", "--load", "--as-load"),
    ],
)
def test_an_old_spelling_is_read_but_not_shown(helps, command, old, new):
    """The parser alone, which fills the same parameter from either spelling."""
    of = COMMANDS[command]
    (option,) = [param for param in _options(of) if new in param.opts]
    given = [] if option.is_flag else ["3"]
    context = of.context_class(of, info_name=command)
    by_old, by_new = (of.make_parser(context).parse_args([name, *given])[0] for name in (old, new))
    assert by_old == by_new
    assert by_old[option.name] == (True if option.is_flag else ["3"] if option.multiple else "3")
    assert not re.search(rf"│ [-\w,]*{old}[ ,]", helps[command])
    assert all(old not in param.opts for param in _options(of))
