"""Options of `eplb` that hold for every command: -q, -v, -V, --color."""

import json
import logging

import pytest

from eplb_cli import output

ASKED = ("--ranks", 4, "--strategies", "linear,greedy")


@pytest.fixture(autouse=True)
def _environment_is_restored(monkeypatch):
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_quiet_prints_the_result_and_errors_alone(run, load_path, plan_path, tmp_path):
    csv = tmp_path / "load.csv"
    csv.write_text("layer,expert,tokens\n0,0,1\n0,1,2\n0,2,3\n0,3,4\n")
    words = ("plan", csv, "--ranks", 2, "--strategy", "greedy", "--json")
    loud, quiet = run(*words), run("-q", *words)
    assert loud.stderr != ""
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert json.loads(loud.stdout).keys() == json.loads(quiet.stdout).keys()
    failed = run("--quiet", "plan", tmp_path / "missing.npz", "--ranks", 4)
    assert failed.exit_code == 3
    assert failed.stderr.startswith("error: ")


def test_verbose_prints_where_an_error_comes_from(run, tmp_path):
    words = ("plan", tmp_path / "missing.npz", "--ranks", 4)
    short, long = run(*words), run("-v", *words)
    assert (short.exit_code, long.exit_code) == (3, 3)
    assert short.stderr.count("\n") == 1
    assert long.stderr.startswith("Traceback (most recent call last)")
    assert long.stderr.endswith(short.stderr)


def test_the_log_is_printed_from_the_level_that_was_chosen(capsys):
    logger = logging.getLogger("eplb")
    with output.quiet(), output.library_log_on_stderr(logging.WARNING):
        logger.info("hidden")
        logger.warning("shown")
        output.note("hidden")
    with output.library_log_on_stderr(logging.DEBUG):
        logger.debug("detail")
        output.note("a note")
    assert capsys.readouterr().err == "shown\ndetail\na note\n"


def test_quiet_and_verbose_exclude_each_other(run):
    assert run("-q", "-v", "formats").exit_code == 2


def test_version_is_v(run):
    assert run("-V").stdout == run("--version").stdout


def test_color_is_for_terminals_unless_it_is_asked_for(run, load_path):
    words = ("compare", load_path, *ASKED)
    assert "\x1b[" not in run(*words).stdout
    assert "\x1b[" not in run("--color", "auto", *words).stdout
    assert "\x1b[1m" in run("--color", "always", *words, env={"NO_COLOR": "1"}).stdout
    assert "\x1b[" not in run("--color", "never", *words, env={"FORCE_COLOR": "1"}).stdout


def test_an_unknown_color_is_refused(run):
    result = run("--color", "alwys", "formats")
    assert result.exit_code == 2
    assert "did you mean always?" in result.stderr


@pytest.mark.parametrize("word", ["-q", "--verbose", "--color=never"])
def test_an_option_behind_the_command_is_refused_with_its_place(run, word):
    result = run("trace", "info", "load.npz", word)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"expected before the command: eplb {word} trace info" in said
