"""What is around the commands: pipes and devices as files, full disks, terminals, names with control characters."""

import os
import subprocess
import sys

import pytest

from eplb_cli import output

PLAN = ("--ranks", "4", "--strategy", "linear")


def eplb_process(*words, stdout=subprocess.PIPE, **environment):
    """`eplb` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "eplb_cli", *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )


@pytest.mark.parametrize("suffix", [".csv", ".json", ".pt", ".npz", ".parquet", ""])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_no_input(run, tmp_path, load_path, kind, suffix):
    path = tmp_path / f"input{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for words in (("plan", path, *PLAN), ("trace", "info", path), ("convert", path, "b.json", "--from", "native")):
        result = run(*words, *(("--to", "native") if words[0] == "convert" else ()))
        assert result.exit_code == 3, (words, result.stderr)
        assert "is a pipe, a socket or a device" in result.stderr


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_result_that_stdout_does_not_take_has_its_own_exit_code(tmp_path, load_path, words):
    out = tmp_path / "plan.json"
    with open("/dev/full", "w") as full:
        done = eplb_process("plan", load_path, *PLAN, "-o", out, *words, stdout=full)
    assert done.returncode == 6
    assert done.stderr.decode().splitlines()[-1].startswith("error: stdout: No space left on device: the result is not")
    assert out.exists()


def test_a_stdout_without_the_characters_gets_escapes(tmp_path, load_path):
    out = tmp_path / "pläne.json"
    done = eplb_process("plan", load_path, *PLAN, "-o", out, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"pl\\xe4ne.json" in done.stdout
    assert out.exists()


def test_a_sidecar_that_cannot_be_written_leaves_no_plan_behind(run, tmp_path, load_path):
    (tmp_path / "plan.json.eplb.json").mkdir()
    words = ("plan", load_path, *PLAN, "--format", "sglang", "--moe-layers", "0-2", "--hidden-layers", 3)
    result = run(*words, "-o", tmp_path / "plan.json")
    assert result.exit_code == 3, result.stderr
    assert "plan.json.eplb.json: it is not a regular file" in result.stderr
    assert not (tmp_path / "plan.json").exists()


def test_control_characters_of_names_do_not_reach_the_terminal(capsys):
    name = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\r"
    output.line(name)
    output.error(name)
    output.facts(name, [("name", name)])
    output.table(name, ("name",), [(name,)])
    shown = "".join(capsys.readouterr())
    assert not any(mark in shown for mark in "\x1b\x07\x9b\u202e\r")
    assert "a\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202eb\\r" in shown
