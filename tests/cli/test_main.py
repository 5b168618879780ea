"""The frame of the command line: version, help, errors, exit codes, and the exact set of words it takes."""

import errno
import logging
import re
import subprocess
import sys

import pytest
import typer.main

from eplb.errors import (
    EplbError,
    FormatError,
    InfeasibleError,
    InputError,
    MissingExtraError,
    PlacementError,
    UnknownNameError,
    VerificationError,
)
from eplb_cli import output
from eplb_cli.exit_codes import ExitCode, exit_code_of, sentence_of
from eplb_cli.main import app
from tests.walk import bare_environment

_READ_HINTS = {"--from", "--ranks", "-r", "--nodes", "-n"}
_READING = {
    *("--num-experts", "--top-k", "--moe-layers", "--hidden-layers", "--window", "--from", "--ignore-ids"),
    *("--ignore-columns", "--recorded-under", "--combine"),
}
_PROBLEM = {
    "--ranks",
    "-r",
    "--nodes",
    "-n",
    "--redundant",
    "-k",
    "--groups",
    "-g",
    "--seed",
    "--json",
    *_READING,
}
_ENGINE = {"--engine", "--engine-option", "--sources", "--dispatch"}
_COST = {"--calibration", "--model", "--phase", "--tokens-per-rank", "--dtype"}
# Every word that a script may rely on. A change here changes the public command line: it belongs in the changelog.
_COMMANDS = {
    "plan": {
        *("load_paths", "--output", "-o", "--strategy", "-s", "--group-mode", "--to"),
        *("--group-price", "--dispatch", "--mindie-config", "--constraints", "--time-limit", "--survive"),
        *("--replicate-everywhere", "--replicated-slot", "--decode-load", *_COST),
        *("--previous", "--target", "--max-moves", "--lost-ranks", "--expert-bytes", "--slots", "--retire-ranks"),
        *("--rank-map", "--previous-ranks", "--previous-nodes", "--keep-rank-ids", "--trace", "--load-cap", "--pareto"),
        *(*_PROBLEM, *_ENGINE),
    },
    "compare": {"load_paths", "--ray", "--strategies", "--plan", "--plan-from", *_PROBLEM, *_ENGINE, *_COST},
    "backtest": {"load_paths", "--strategies", "--held-out", "--group-mode", *_PROBLEM, *_ENGINE},
    "sweep": {
        *(
            "load_paths",
            "--ray",
            "--ranks",
            "-r",
            "--nodes",
            "-n",
            "--redundant",
            "-k",
            "--output",
            "-o",
            "--expert-bytes",
        ),
        *("--strategy", "-s", "--json", *_READING, *_ENGINE, *_COST),
    },
    "report": {
        *("load_paths", "--output", "-o", "--plan", "--plan-from", "--ranks", "-r", "--nodes", "-n"),
        *("--redundant", "-k", "--strategy", "-s", *_READING, *_ENGINE, *_COST),
        *("--layers", "--image-format", "--expert-bytes", "--json"),
    },
    "simulate": {
        *("load_paths", "--ranks", "-r", "--nodes", "-n", "--redundant", "-k", "--interval", "-i", "--policy"),
        *("--max-moves", "--price", "--memory", "--bandwidth", "--expert-bytes", "--seed"),
        *("--json", *_READING, *_ENGINE, *_COST),
    },
    "evaluate": {
        *(
            "plan_path",
            "load_paths",
            "--plan-from",
            "--trace",
            "--json",
            "--traffic",
            "--hidden-size",
            "--activation",
        ),
        *(*_READ_HINTS, *_READING, *_ENGINE, *_COST),
    },
    "diff": {
        *("old_path", "new_path", "--ranks", "-r", "--nodes", "-n", "--num-experts", "--expert-bytes", "--json"),
        *("--lost-ranks", "--rank-map"),
    },
    "convert": {
        "source",
        "target",
        "--to",
        "--num-experts",
        "--num-layers",
        "--moe-layers",
        "--hidden-layers",
        *_READ_HINTS,
    },
    "check": {"paths", "--engine", "-e", "--ranks", "-r", "--num-experts", "--moe-layers", "--hidden-layers"},
    "verify": {
        *("plan_path", "--processes", "-p", "--backend", "-b", "--exchange", "--dispatch"),
        *("--tokens-per-rank", "-t", "--trace", "--num-experts", "--layers", "--hidden-size", "--top-k", "--overflow"),
        *("--buffer-scale-factors", "--topk-scaling-factor", "--inject", "--record", "--seed", "--json"),
        *("--virtual", "--device", "--load", "--model", "--phase", "--calibration", "--dtype"),
        "--mindie-config",
        *_READ_HINTS,
    },
    "replay": {
        *("load_paths", "--model", "--calibration", "--plan", "--strategies", "--online", "--every", "--ranks"),
        *("-r", "--nodes", "-n", "--redundant", "-k", "--groups", "-g", "--group-mode", "--dispatch", "--layers"),
        *("--tokens-per-rank", "--layers-per-step", "--bandwidth", "--device", "--dtype", "--seed", "--json"),
        *_READING,
    },
    "cache build": {"--json"},
    "formats": {"--json"},
    "env": {"--json"},
    "strategies": {"--json"},
    "calibrate": {"--output", "-o", "--model", "--device", "--dtype", "--json"},
    "advise": {
        *("load_paths", "--calibration", "--nodes", "-n", "--gpus-per-node", "--redundant", "-k", "--strategies"),
        *("--dispatch", "--slo-ms", "--rest-bytes", "--reserve-bytes", "--ray", "--output", "-o", "--seed", "--all"),
        "--json",
        *(*_COST - {"--calibration"}, *_READING),
    },
    "trace info": {"paths", "--json", "--ranks", "-r", *_READING},
    "trace convert": {
        *("path", "out", "--as-load", "--layout", *_READING),
    },
    "trace merge": {"paths", "--output", "-o", "--as-load", "--layout", *_READING},
    "trace reduce": {"files", "--ray", "--output", "-o", "--json", *_READING},
    "trace dialects": {"--json"},
    "trace record": {
        *("model_dir", "prompts_path", "--output", "-o", "--max-new-tokens", "--batch-size", "--device"),
    },
    "trace synth": {
        *("out", "--preset", "-p", "--num-layers", "--num-experts", "--top-k", "--groups"),
        *("--tokens", "--num-windows", "--as-load", "--seed"),
    },
}


_TABLES = {
    *("compare", "sweep", "backtest", "simulate", "replay", "advise", "evaluate", "diff", "formats", "strategies"),
    *("trace info", "trace dialects"),
}
"""Commands with `--csv`; all have `--json`."""


def _commands():
    """{name: command} of the whole tree, groups left out."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        nested = getattr(command, "commands", None)
        if nested is None:
            found[name] = command
        else:
            found |= {f"{name} {inner}": of for inner, of in nested.items()}
    return found


def test_the_words_of_the_command_line_are_exactly_these():
    found = {
        name: {word for param in of.params for word in param.opts} - {"--help", "-h"}
        for name, of in _commands().items()
    }
    forms = {name: {"--json", "--csv"} if name in _TABLES else {"--json"} for name in _COMMANDS}
    assert found == {name: words | forms[name] for name, words in _COMMANDS.items()}


def test_every_command_and_every_word_is_explained(run):
    for name, command in _commands().items():
        result = run(*name.split(), "--help")
        assert result.exit_code == 0
        assert command.help
        assert all(param.help for param in command.params), name


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"eplb \d+\.\d+\.\d+\n", result.stdout)


def test_no_words_show_the_help(run):
    result = run()
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize("words", [["nonsense"], ["plan"], ["plan", "x.npz", "--ranks", "many"], ["formats", "--what"]])
def test_wrong_words_are_usage_errors(run, words):
    result = run(*words)
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EplbError("x"), 3),
        (InputError("x"), 3),
        (PlacementError("x"), 3),
        (FormatError("x"), 3),
        (UnknownNameError("strategy", "x", ["y"]), 3),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3),
        (MissingExtraError("reading Parquet", "trace"), 2),
        (InfeasibleError("x"), 4),
        (VerificationError("x"), 5),
        (BrokenPipeError(), None),
        (ValueError("x"), None),
        (ImportError("x"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_made_for_the_user_has_its_code_and_a_bug_has_none(error, code):
    assert exit_code_of(error) == code


def test_messages_are_one_line():
    assert sentence_of(InputError("first\n  second")) == "first second"
    assert sentence_of(InputError()) == "InputError"
    assert sentence_of(PermissionError(errno.EACCES, "Permission denied", "x.json")) == "x.json: Permission denied"


def test_an_error_of_any_command_ends_with_its_code_and_one_line(run, monkeypatch, load_path):
    def refuse(*_args, **_words):
        raise InfeasibleError("no placement\nfits")

    monkeypatch.setattr("eplb.plan", refuse)
    result = run("plan", load_path, "--ranks", 4)
    assert result.exit_code == ExitCode.INFEASIBLE
    assert result.stderr == "error: no placement fits\n"
    assert result.stdout == ""


def test_a_bug_is_not_dressed_up(run, monkeypatch, load_path):
    def crash(*_args, **_words):
        raise ZeroDivisionError

    monkeypatch.setattr("eplb.plan", crash)
    result = run("plan", load_path, "--ranks", 4)
    assert result.exit_code == ExitCode.BUG
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_missing_extra_says_in_one_line_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(
        "trace", "synth", tmp_path / "x.parquet", "--layers", 1, "--num-experts", 8, "--top-k", 2, "--tokens", 4
    )
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr == f"error: {MissingExtraError('Parquet', 'trace')}\n"
    assert list(tmp_path.iterdir()) == []


def test_what_the_library_logs_is_shown_on_stderr_while_a_command_runs(capsys):
    logger = logging.getLogger("eplb")
    with output.library_log_on_stderr():
        logger.info("compiling %s", "kernels")
        logger.debug("nobody wants this")
    logger.info("too late")
    assert capsys.readouterr() == ("", "compiling kernels\n")


def test_help_loads_neither_the_library_nor_numpy_nor_what_draws_tables():
    heavy = {"numpy", "numba", "eplb", "eplb_traces", "rich"}
    code = f"before = set(sys.modules); import eplb_cli.main; print(sorted({heavy!r} & (set(sys.modules) - before)))"
    script = f"import sys, typer.core; sys.path[:0] = {[path for path in sys.path if path]!r}; {code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_reader_that_goes_away_gets_no_traceback(load_path):
    command = f"{sys.executable} -c 'from eplb_cli.main import main; main()' plan {load_path} --ranks 4 --json"
    shell = ["/bin/sh", "-c", f"{command} | true"]
    result = subprocess.run(shell, capture_output=True, text=True, check=True, env=bare_environment())
    assert "Traceback" not in result.stderr


def test_no_color_is_honoured(run, load_path):
    colours = re.compile("\x1b\\[(3|4|9)")
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert not colours.search(run("compare", load_path, "--ranks", 4, env=forced | {"NO_COLOR": "1"}).stdout)


def test_calibrate_refuses_an_unwritable_path_before_it_measures(run, tmp_path):
    pytest.importorskip("torch")
    result = run("calibrate", "--device", "cpu", "-o", tmp_path / "missing" / "gpu.json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "is no folder" in result.stderr
    assert "measured" not in result.stderr
