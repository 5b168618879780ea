"""`-` as stdin and stdout: the bytes of a file and nothing else, in real pipes and in this process."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
import pytest

from eplb.formats import ReadHints, read_plan
from eplb_cli import output
from eplb_cli.arguments.content_suffix import load_suffix, placement_suffix
from eplb_cli.exit_codes import ExitCode
from eplb_traces import ExpertLoad, ModelShape, read_load, read_trace, write_load
from tests.walk import bare_environment

ON = ("--ranks", 4, "--redundant", 4, "-s", "greedy")
SYNTH = ("--num-layers", 2, "--num-experts", 8, "--groups", 1, "--top-k", 2, "--tokens", 16)


@pytest.fixture
def load_path(tmp_path, counts):
    """Of a model whose layers are known, so that every engine's file can be written."""
    path = tmp_path / "load.npz"
    write_load(ExpertLoad(counts, shape=ModelShape(3, 16, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)), path)
    return path


@pytest.fixture(autouse=True)
def no_file_is_left(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def _experts_of_ranks(path):
    """[3, 4, 5] sorted: an omni file has no order of slots within a rank."""
    return np.sort(read_plan(path, hints=ReadHints(num_ranks=4)).placement.physical_to_logical_map.reshape(3, 4, 5))


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_load_from_stdin_is_the_load_of_the_file(run, load_path, form):
    named = run("trace", "info", load_path, *form)
    piped = run("trace", "info", "-", *form, input=load_path.read_bytes())
    assert (named.exit_code, piped.exit_code) == (0, 0), piped.stderr
    assert piped.stdout == named.stdout.replace(str(load_path), "stdin").replace("load.npz", "stdin.npz")


def test_several_loads_of_which_one_is_stdin(run, load_path):
    words = ("--combine", "sum", "--json")
    other = load_path.with_name("other.npz")
    other.write_bytes(load_path.read_bytes())
    named = run("trace", "info", load_path, other, *words)
    piped = run("trace", "info", load_path, "-", *words, input=load_path.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert json.loads(piped.stdout)["tokens"] == json.loads(named.stdout)["tokens"]


def test_a_plan_from_stdin(run, load_path, plan_path):
    named = run("evaluate", plan_path, load_path, "--json")
    piped = run("evaluate", "-", load_path, "--json", input=plan_path.read_bytes())
    assert (piped.exit_code, piped.stdout) == (0, named.stdout), piped.stderr


NATIVE = pytest.param("native", marks=pytest.mark.slow)
"""Not on the lowest typer, whose runner in one process loses stderr here; a process of its own prints it."""


@pytest.mark.parametrize("to", [NATIVE, "sglang", "vllm", "ascend", "trtllm", "deepseek", "omni"])
def test_a_file_on_stdout_is_the_file_that_would_be_written(run, plan_path, tmp_path, to):
    named = tmp_path / f"named{'.yaml' if to == 'trtllm' else '.npz' if to == 'deepseek' else '.json'}"
    named = named.with_suffix(".npy") if to == "omni" else named
    assert run("convert", plan_path, named, "--to", to).exit_code == 0
    piped = run("convert", plan_path, "-", "--to", to)
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == named.read_bytes()
    assert f"wrote stdout ({to})" in piped.stderr
    has_sidecar = named.with_name(f"{named.name}.eplb.json").exists()
    assert ("sidecar) is not written to stdout" in piped.stderr) is has_sidecar
    again = run("convert", "-", tmp_path / "again.json", "--to", "vllm", "--ranks", 4, input=piped.stdout_bytes)
    assert again.exit_code == 0, again.stderr
    before, after = _experts_of_ranks(plan_path), _experts_of_ranks(tmp_path / "again.json")
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("more", "to"),
    [
        pytest.param((), "native", marks=pytest.mark.slow),  # as `NATIVE`
        (("--engine", "trtllm"), "trtllm"),
        (("--to", "sglang"), "sglang"),
    ],
)
def test_a_plan_on_stdout(run, load_path, tmp_path, more, to):
    result = run("plan", load_path, *ON, *more, "-o", "-")
    assert result.exit_code == 0, result.stderr
    out = tmp_path / ("plan.yaml" if to == "trtllm" else "plan.json")
    out.write_bytes(result.stdout_bytes)
    assert read_plan(out, to, ReadHints(num_ranks=4)).shape.num_experts == 16
    assert f"wrote stdout ({to})" in result.stderr
    assert "busiest / mean rank" in result.stderr
    assert "--init-expert-location FILE" in result.stderr or to != "sglang"
    assert "eplb-" not in result.stderr


def test_a_replan_of_stdin_is_written_to_stdout_as_the_live_file_is(run, load_path, tmp_path):
    live = tmp_path / "live.json"
    assert run("plan", load_path, *ON, "-o", live, "--to", "ascend").exit_code == 0
    words = ("--previous", "-", "-o", "-")
    result = run("plan", load_path, *words, input=live.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout).keys() == json.loads(live.read_text()).keys()


def test_quiet_leaves_the_file_alone(run, load_path):
    result = run("-q", "plan", load_path, *ON, "-o", "-")
    assert result.stderr == ""
    assert json.loads(result.stdout)


def test_loads_and_traces_on_stdout(run, tmp_path):
    load = run("trace", "synth", "-", *SYNTH, "--as-load")
    trace = run("trace", "synth", "-", *SYNTH)
    (tmp_path / "load.csv").write_bytes(load.stdout_bytes)
    (tmp_path / "trace.parquet").write_bytes(trace.stdout_bytes)
    assert read_load(tmp_path / "load.csv").num_experts == 8
    assert read_trace(tmp_path / "trace.parquet").shape.num_layers == 2
    same = run("trace", "convert", "-", "-", input=trace.stdout_bytes)
    counted = run("trace", "convert", "-", "-", "--as-load", input=trace.stdout_bytes)
    assert same.stdout_bytes[:4] == b"PAR1"
    assert counted.stdout.startswith("window,layer,0,1")
    merged = run("trace", "merge", tmp_path / "load.csv", "-", "--combine", "sum", "-o", "-", input=load.stdout_bytes)
    (tmp_path / "merged.csv").write_bytes(merged.stdout_bytes)
    twice = 2 * read_load(tmp_path / "load.csv").tokens
    np.testing.assert_array_equal(read_load(tmp_path / "merged.csv").tokens, twice)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("evaluate", "-", "-"), "Invalid value for PLAN and LOAD: stdin (-) can be read once"),
        (("compare", "-", "-", "--ranks", 4), "Invalid value for LOAD: stdin (-) can be read once"),
        (("plan", "LOAD", *ON, "-o", "-", "--json"), "Invalid value for --json: cannot be combined with --output -"),
        (("sweep", "LOAD", "--ranks", 4, "-k", 4, "-o", "-"), "--output: eplb sweep does not write to stdout (-)"),
        (("trace", "reduce", "-", "-o", "a.npz"), "FILE: stdin (-) cannot be read again"),
        (("plan", "-", *ON), "Invalid value for LOAD: stdin (-) is empty"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_by_name(run, load_path, words, expected):
    result = run(*(load_path if word == "LOAD" else word for word in words), env={"COLUMNS": "200", "TERM": "dumb"})
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04cut", "error: stdin: "),
        (b'{"unknown": 1}', "error: stdin: a JSON object with the keys unknown"),
        (b"layer,0\n", "error: stdin: "),
    ],
)
def test_messages_name_stdin(run, content, expected):
    result = run("plan", "-", *ON, input=content)
    assert result.exit_code == ExitCode.BAD_INPUT
    assert expected in result.stderr
    assert "eplb-" not in result.stderr


def damaged_zip():
    file = io.BytesIO()
    np.savez(file, load=np.ones((3, 8)))
    return file.getvalue().replace(b"PK\x01\x02", b"PK\x01\x03")


def damaged_gzip():
    content = bytearray(gzip.compress("".join(f"{i},{i * 7 % 997}\n" for i in range(2000)).encode()))
    content[20:40] = bytes(20)
    return bytes(content)


@pytest.mark.parametrize("content", [damaged_zip(), damaged_gzip()], ids=["zip", "gzip"])
@pytest.mark.parametrize("words", [("trace", "info", "-"), ("convert", "-", "a.json", "--to", "native")], ids=str)
def test_a_damaged_archive_from_stdin_is_refused_by_name(run, words, content):
    result = run(*words, input=content)
    assert (result.exit_code, result.stderr.startswith("error: stdin: ")) == (ExitCode.BAD_INPUT, True)


def test_a_placement_in_place_of_a_load_is_named(run, plan_path):
    result = run("plan", "-", *ON, input=plan_path.read_bytes())
    assert result.exit_code == ExitCode.BAD_INPUT
    assert result.stderr == "error: stdin: a placement (native): expected a load or a trace\n"


def test_a_file_called_dash_is_read_by_its_whole_path(run, load_path):
    path = load_path.rename(load_path.with_name("-"))
    assert run("trace", "info", path, "--from", "npz").exit_code == 0


def _bytes_of(save, *values, **named):
    memory = io.BytesIO()
    save(memory, *values, **named)
    return memory.getvalue()


def _zip_of(name):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(name, b"")
    return memory.getvalue()


@pytest.mark.parametrize(
    ("content", "load", "placement"),
    [
        (_bytes_of(np.savez, a=np.zeros(2)), ".npz", ".npz"),
        (_bytes_of(np.save, np.zeros(2)), ".npy", ".npy"),
        (_zip_of("archive/data.pkl"), ".pt", ".pt"),
        (b"PAR1...", ".parquet", ".parquet"),
        (b'\x08\0\0\0\0\0\0\0{"a": 1}', ".safetensors", ".safetensors"),
        (b' {"a":\n 1}\n', ".json", ".json"),
        (b"[1,\n2]", ".json", ".json"),
        (b'{"a": 1}\n\n', ".json", ".json"),
        (b'{"a": 1}\n{"a": 2}\n', ".jsonl", ".json"),
        (b"layer,0,1\n", ".csv", ".yaml"),
        (b"layer\t0\t1\n", ".tsv", ".yaml"),
        (gzip.compress(b'{"a": 1}\n{"a": 2}\n', mtime=0), ".jsonl.gz", ".yaml"),
    ],
)
def test_the_suffix_follows_from_the_content(tmp_path, content, load, placement):
    path = tmp_path / "content"
    path.write_bytes(content)
    assert (load_suffix(path), placement_suffix(path)) == (load, placement)


_EPLB = f"{sys.executable} -m eplb_cli"
_ENVIRONMENT = bare_environment() | {"PATH": os.environ["PATH"]}


def _shell(line, **more):
    return subprocess.run(["/bin/bash", "-o", "pipefail", "-c", line], capture_output=True, env=_ENVIRONMENT, **more)


def test_commands_joined_by_pipes(load_path, tmp_path):
    line = f"cat {load_path} | {_EPLB} plan - --ranks 4 --redundant 4 -s greedy --to sglang -o -"
    found = _shell(f"{line} | tee {tmp_path / 'plan.json'} | {_EPLB} check - --engine sglang --ranks 4")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(b"sglang would load it: 3 layers")
    assert list(json.loads((tmp_path / "plan.json").read_text())) == ["physical_to_logical_map"]


def test_a_reader_of_the_file_that_goes_away(load_path):
    found = _shell(f"{_EPLB} -q plan {load_path} --ranks 4 -s greedy -o - | head -c 1")
    assert (found.stdout, found.stderr) == (b"{", b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_command_leaves_no_file(tmp_path, number, code):
    folder = tmp_path / "ended"
    folder.mkdir()
    words = [sys.executable, "-m", "eplb_cli", "trace", "info", "-"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, env=_ENVIRONMENT | {"TMPDIR": str(folder)}, restore_signals=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        end = time.monotonic() + 60
        while not list(folder.glob("*/stdin")):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == code
    assert not list(folder.iterdir())


def test_a_terminal_is_refused_by_name(load_path):
    primary, secondary = os.openpty()
    words = [sys.executable, "-m", "eplb_cli"]
    try:
        read = subprocess.run(
            [*words, "trace", "info", "-"], stdin=secondary, capture_output=True, text=True, env=_ENVIRONMENT
        )
        write = subprocess.run(
            [*words, "trace", "synth", "-", *map(str, SYNTH)],
            stdout=secondary, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT,
        )  # fmt: skip
    finally:
        os.close(primary)
        os.close(secondary)
    assert (read.returncode, write.returncode) == (ExitCode.USAGE, ExitCode.USAGE)
    assert "stdin (-) is a terminal: pipe a file" in " ".join(read.stderr.split())
    assert "stdout (-) is a terminal, and a .parquet is not text" in " ".join(write.stderr.replace("│", "").split())


def test_a_name_in_place_of_a_path_is_in_all_that_is_printed(capsys):
    output.show_as({"/tmp/a.npz": "stdin"})
    output.line("/tmp/a.npz: x")
    output.json_object({"path": "/tmp/a.npz"})
    output.show_as({})
    assert capsys.readouterr().out == 'stdin: x\n{\n  "path": "stdin"\n}\n'
