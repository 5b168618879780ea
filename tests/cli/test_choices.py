"""Options that take a name of a set: a wrong one is a usage error that names the one that was probably meant."""

import pytest
import typer

from eplb.formats import FORMATS
from eplb.formats.engine_check import ENGINES
from eplb.strategies import STRATEGIES
from eplb_cli.arguments import choices
from eplb_cli.arguments.choices import Choice
from eplb_cli.exit_codes import ExitCode
from tests.cli.test_help import COMMANDS

CHOICES = {name: value for name, value in vars(choices).items() if isinstance(value, Choice)}
NEEDS_TORCH = ("EXCHANGE", "OVERFLOW", "FAULT")


def _flat(text):
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("command", "option", "wrong", "meant"),
    [
        ("plan", "--strategy", "gredy", "greedy"),
        ("plan", "--engine", "sglng", "sglang"),
        ("plan", "--dispatch", "wieghted", "weighted"),
        ("plan", "--group-mode", "pined", "pinned"),
        ("plan", "--survive", "nod", "node"),
        ("plan", "--to", "ascnd", "ascend"),
        ("plan", "--phase", "bth", "both"),
        ("plan", "--model", "deepseek-v4", "deepseek-v3"),
        ("plan", "--calibration", "h2000", "h200"),
        ("plan", "--from", "trtlm", "trtllm"),
        ("plan", "--combine", "tim", "time"),
        ("compare", "--strategies", "greedy,ipl", "ilp"),
        ("simulate", "--policy", "never,orakle", "oracle"),
        ("trace synth", "--preset", "v3-prefil", "v3-prefill"),
    ],
)
def test_a_wrong_name_ends_with_exit_code_2_and_what_was_meant(run, command, option, wrong, meant):
    result = run(*command.split(), "a-file-that-is-not-read", "--ranks", 4, option, wrong)
    if command == "trace synth":
        result = run(*command.split(), "a-file-that-is-not-written.npz", option, wrong)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert f"'{option}'" in result.stderr
    assert f"'{wrong.split(',')[-1]}': did you mean {meant}? Expected one of" in _flat(result.stderr)


def test_a_name_that_is_like_none_gets_the_list_alone():
    with pytest.raises(typer.BadParameter) as caught:
        Choice(lambda: ("even", "odd")).one("zzz")
    assert caught.value.message == "'zzz': Expected one of even, odd"


@pytest.mark.parametrize("name", CHOICES)
def test_every_name_of_a_set_is_taken_and_completed(name):
    if name in NEEDS_TORCH:
        pytest.importorskip("torch")
    choice = CHOICES[name]
    names = list(choice.names())
    assert len(names) >= 2
    assert [choice.one(each) for each in names] == names
    assert choice.several(" , ".join(names)) == ",".join(names)
    assert choice.complete("") == names
    assert names[0] in choice.complete(names[0][:2])


def test_own_strategies_model_files_and_calibrations_are_no_names(tmp_path):
    config = tmp_path / "config"
    config.write_text("{}")
    assert choices.STRATEGY.several("my_module:Mine,greedy") == "my_module:Mine,greedy"
    assert choices.MODEL.one(str(config)) == str(config)
    assert choices.GPU.one("missing.json") == "missing.json"
    assert choices.GPU.one("H200") == "H200"


def test_every_option_that_completes_a_name_checks_it():
    """Completion and check come from one set, so a new option cannot have one of them alone."""
    checked = 0
    for command in COMMANDS.values():
        for param in command.params:
            completes = param.opts[0] in {"--strategy", "--engine", "--dispatch", "--model", "--to", "--combine"}
            if completes and param.param_type_name == "option":
                context = command.context_class(command, info_name="x")
                value = ["n-o-n-e"] if param.multiple else "n-o-n-e"
                with pytest.raises(typer.BadParameter, match="Expected one of"):
                    param.process_value(context, value)
                checked += 1
    assert checked > 30


@pytest.mark.slow  # the lowest typer suggests no command
@pytest.mark.parametrize(("words", "meant"), [(("plam", "x"), "plan"), (("trace", "inof"), "info")])
def test_a_misspelt_command_is_a_usage_error_with_a_suggestion(run, words, meant):
    result = run(*words)
    assert result.exit_code == ExitCode.USAGE
    assert meant in result.stderr


def test_a_misspelt_option_is_a_usage_error_with_a_suggestion(run):
    result = run("plan", "x", "--redundnt", 4)
    assert result.exit_code == ExitCode.USAGE
    assert "--redundant" in result.stderr


def test_completion_offers_what_the_tables_hold():
    assert choices.FORMAT.complete("") == list(FORMATS)
    assert choices.FORMAT.complete("sg") == ["sglang"]
    assert choices.STRATEGY.complete("") == ["auto", *STRATEGIES]
    assert choices.ENGINE_OF_FILE.complete("") == list(ENGINES)
