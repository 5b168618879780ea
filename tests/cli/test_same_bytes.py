"""Every command that writes files writes the same bytes when it is run again: in another process, at another time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eplb.formats import FORMATS
from eplb_traces import ExpertLoad, ModelShape, synthesize_trace, write_load, write_trace
from eplb_traces.files.writers import LOAD_WRITERS

for _module in ("torch", "matplotlib", "pyarrow"):
    pytest.importorskip(_module)

SHAPE = ModelShape(3, 16, 4, moe_layer_ids=(1, 2, 4), num_hidden_layers=6)
TOPOLOGY = ("--ranks", "4", "--nodes", "2", "--redundant", "4")
PLAN = ("plan", "load.npz", *TOPOLOGY, "--strategy", "greedy")
FILES = [(name, suffix) for name, entry in FORMATS.items() for suffix in entry.suffixes]
SMALL = ("--layers", "2", "--experts", "16", "--top-k", "2", "--tokens", "64", "--windows", "4")
# In this order: a command reads what an earlier one wrote. `trace record` needs a model and is not deterministic.
COMMANDS = {
    **{f"plan {n}{s}": (*PLAN, "--format", n, "-o", f"plan-{n}{s}") for n, s in FILES},
    **{f"convert {n}{s}": ("convert", "plan-native.json", f"out-{n}{s}", "--to", n) for n, s in FILES},
    "replan": ("plan", "later.npz", "--previous", "plan-native.json", "--max-moves", "4", "-o", "replan.json"),
    "scenario": ("plan", "load.npz", *TOPOLOGY, "--strategy", "scenario", "-o", "scenario.json"),
    "trace synth": ("trace", "synth", "synth.parquet", *SMALL),
    "trace synth --load": ("trace", "synth", "synth.npz", "--load", *SMALL),
    **{f"trace convert {s}": ("trace", "convert", "trace.parquet", f"load-{s[1:]}{s}", "--load") for s in LOAD_WRITERS},
    "trace convert trace": ("trace", "convert", "trace.parquet", "again.parquet"),
    "sweep .png": ("sweep", "load.npz", "--ranks", "4", "--redundant", "0:8:4", "-o", "sweep.png"),
    "sweep .svg": ("sweep", "load.npz", "--ranks", "4", "--redundant", "0:8:4", "-o", "sweep.svg"),
    "sweep .pdf": ("sweep", "load.npz", "--ranks", "4", "--redundant", "0:8:4", "-o", "sweep.pdf"),
    "report folder": ("report", "load.npz", "--plan", "plan-native.json", "--plan", "replan.json", "-o", "report"),
    "report folder of a trace": ("report", "trace.parquet", "--ranks", "4", "--image-format", "svg", "-o", "traced"),
    "report page": ("report", "trace.parquet", "--ranks", "4", "-o", "page.html"),
}
# Runs command lines, one an argument, words separated by spaces, as `eplb` runs them.
SCRIPT = """
import sys
from eplb_cli.main import app
for line in sys.argv[1:]:
    app(line.split(), standalone_mode=False)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_inputs(folder: Path) -> Path:
    folder.mkdir()
    tokens = np.random.default_rng(1).lognormal(4, 1, (2, 4, 3, 16)).round() + 1
    write_load(ExpertLoad(tokens[0], shape=SHAPE), folder / "load.npz")
    write_load(ExpertLoad(tokens[1], shape=SHAPE), folder / "later.npz")
    shape = ModelShape(2, 16, 2, moe_layer_ids=(0, 1), num_hidden_layers=2)
    write_trace(synthesize_trace("v3-prefill", shape=shape, num_steps=4, tokens_per_step=64), folder / "trace.parquet")
    return folder


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The files that each command wrote, by command, in this process and in another one."""
    base = tmp_path_factory.mktemp("twice")
    here, there = write_inputs(base / "a"), write_inputs(base / "b")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for title, words in COMMANDS.items():
            before = set(files_of(here))
            result = run(*words)
            assert result.exit_code == 0, (title, result.stderr)
            names[title] = set(files_of(here)) - before
    search = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    lines = [" ".join(words) for words in COMMANDS.values()]
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", SCRIPT, *lines], cwd=there, env=environment, check=True, capture_output=True)
    return names, files_of(here), files_of(there)


@pytest.mark.parametrize("title", COMMANDS)
def test_the_same_command_twice_gives_the_same_bytes(title, written):
    names, here, there = written
    assert names[title]
    for name in names[title]:
        assert here[name] == there[name], name


def test_the_inputs_are_not_taken_for_output_and_nothing_else_is_written(written):
    names, here, there = written
    inputs = {"load.npz", "later.npz", "trace.parquet"}
    assert set(here) == set(there) == inputs.union(*names.values())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_drawings_carry_no_date(suffix, written):
    content = written[1][f"sweep{suffix}"]
    assert not any(word in content for word in (b"CreationDate", b"<dc:date>", b"tIME"))
