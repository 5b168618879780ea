"""A script of command lines, good and wrong: what they print at three widths is compared with `golden/`.

`UPDATE_GOLDEN=1 python -m pytest tests/cli/test_golden.py` writes them anew; read the difference before you commit.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from eplb_cli import output
from eplb_traces import ExpertLoad, write_load

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (60, 80, 120)
MODEL = "--moe-layers 0-2 --hidden-layers 3"
SCRIPT = f"""
trace info load.npz --ranks 4,8
trace info load.npz --ranks 4 --json
trace convert load.npz load.csv
trace merge load.npz load.npz -o both.npz
plan load.npz --ranks 4 --nodes 2 --redundant 4 --strategy greedy -o plan.json
plan load.npz --ranks 4 --redundant 4 --strategy scenario
plan load.npz --ranks 4 --redundant 4 --strategy linear --engine sglang {MODEL} -o sglang.json
plan load.npz --previous plan.json --max-moves 2 -o new.json
plan other.npz --previous plan.json
plan load.npz --previous plan.json --lost-ranks 3
-q plan load.npz --ranks 4 --strategy linear
--config cluster.toml plan load.npz --strategy linear
compare load.npz --ranks 4 --redundant 4
compare load.npz --ranks 4 --strategies linear,greedy --engine vllm
compare load.npz --ranks 4 --engine all
evaluate plan.json load.npz
evaluate plan.json load.npz --dispatch online
evaluate plan.json load.npz --json
backtest history.npz --ranks 4 --strategies linear,greedy
sweep load.npz --ranks 4 --redundant 0:8:4 --expert-bytes 42MiB
diff plan.json new.json --expert-bytes 42MiB
convert plan.json map.json --to sglang {MODEL}
check sglang.json --engine sglang --ranks 4 --num-experts 16
formats
strategies
plan missing.npz --ranks 4
plan load.npz
plan load.npz --ranks 5
plan load.npz --ranks 4 --redundant 3
plan load.npz --ranks many
plan load.npz --ranks 4 --strategy gredy
plan load.npz --ranks 4 --redundnt 4
plam load.npz --ranks 4
plan load.npz --ranks 4 --target 1.1
plan load.npz --ranks 4 --window 3
plan load.npz --ranks 4 --engine sglang --dispatch even
plan load.npz --ranks 4 --nodes 4 --survive node
compare load.npz --ranks 4 --strategies greedy,ipl
evaluate plan.json small.npz
check plan.json --engine sglang --ranks 4
convert broken.json out.json --to sglang
diff plan.json new.json --expert-bytes 42M
--config wrong.toml plan load.npz
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """The files of the script; durations are masked, as they decide how wide a column is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output, "milliseconds", lambda _seconds: "1.0")
    rng = np.random.default_rng(7)
    counts = rng.integers(1, 1000, (3, 16)).astype(float)
    write_load(ExpertLoad(counts), Path("load.npz"))
    write_load(ExpertLoad(counts[:, ::-1].copy()), Path("other.npz"))
    write_load(ExpertLoad(counts[:, :8].copy()), Path("small.npz"))
    write_load(ExpertLoad(rng.integers(1, 1000, (8, 3, 16)).astype(float)), Path("history.npz"))
    Path("broken.json").write_text('{"physical_to_logical_map": [[0, 1], [0]]}')
    Path("cluster.toml").write_text("ranks = 4\nnodes = 2\nredundant = 4\n")
    Path("wrong.toml").write_text("rank = 4\n")


def _transcript(run, width):
    return "\n".join(_entry(run, line, width) for line in SCRIPT.strip().splitlines())


def _entry(run, line, width):
    result = run(*shlex.split(line), env={"COLUMNS": str(width)})
    assert result.exit_code != 1, (line, result.exception)
    parts = [f"$ eplb {line}", result.stdout.rstrip("\n"), *_said(result), f"exit code {result.exit_code}"]
    return "\n".join(part for part in parts if part) + "\n"


def _said(result):
    """What is on stderr; of a usage error the sentence alone, whose frame is that of the installed typer."""
    if result.exit_code != 2 or "╭" not in result.stderr:
        return [f"stderr: {line}" for line in result.stderr.splitlines()]
    notes, _, framed = result.stderr.partition("Usage: ")
    inside = " ".join(re.findall(r"^│(.*)│$", framed, re.MULTILINE))
    return [*(f"stderr: {line}" for line in notes.splitlines()), f"usage: {' '.join(inside.split())}"]


@pytest.mark.slow  # the sentences of usage errors differ between versions of typer
@pytest.mark.parametrize("width", WIDTHS)
def test_the_script_prints_what_it_printed_before(run, width):
    path = GOLDEN / f"{width}.txt"
    found = _transcript(run, width)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_script_has_lines_of_every_kind_and_no_line_is_too_wide(width):
    text = (GOLDEN / f"{width}.txt").read_text()
    assert len(SCRIPT.strip().splitlines()) >= 40
    assert set(re.findall(r"^exit code (\d)$", text, re.MULTILINE)) == {"0", "2", "3", "4"}
    tables = re.findall(r"^\$ eplb (?:compare|sweep|backtest).*\n((?:(?!stderr|exit|usage).*\n)+)", text, re.MULTILINE)
    assert len(tables) == 5
    rows = [line for table in tables for line in table.splitlines()[1:]]
    assert max(map(len, rows)) <= max(width, 80)
