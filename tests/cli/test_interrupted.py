"""Ctrl-C while a trace is counted: no output, no half of one, and the finished files are kept."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eplb_traces import ModelShape, RoutingTrace
from eplb_traces.files.writers import write_trace
from tests.traces.examples import random_batch

pytest.importorskip("pyarrow")
REPOSITORY = Path(__file__).resolve().parents[2]


def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    shape = ModelShape(2, 8, 2)
    batch = random_batch(np.random.default_rng(0), 50, shape)
    for name in ("a", "b"):
        write_trace(RoutingTrace(shape, [batch]), tmp_path / f"{name}.parquet")
    script = (
        "import os, signal, time\n"
        "from eplb_traces.scale import checkpoint\n"
        "save = checkpoint.Checkpoint.save\n"
        "def interrupted(self, shard, found):\n"  # the user presses Ctrl-C as the first file is finished
        "    save(self, shard, found)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "checkpoint.Checkpoint.save = interrupted\n"
        "from eplb_cli.main import main\n"
        "main()\n"
    )
    rooms = os.pathsep.join(str(REPOSITORY / room) for room in ("", "traces", "cli"))
    command = [sys.executable, "-c", script, "trace", "reduce", "a.parquet", "b.parquet", "-o", "load.npz"]
    environment = os.environ | {"PYTHONPATH": rooms}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "load.npz.shards"]
    assert len(list((tmp_path / "load.npz.shards").iterdir())) == 1
