"""The processes of a verification end with their caller, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda of: of.name)
def test_workers_end_at_once_with_their_caller(tmp_path, end):
    for name in ("alive", "never"):
        os.mkfifo(tmp_path / name)
    words = [sys.executable, "-m", "tests.runtime.verification.blocked", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as caller:
        with open(tmp_path / "alive") as alive:
            assert [alive.readline() for _ in range(2)] == ["began\n"] * 2
            began = time.monotonic()
            caller.send_signal(end)
            assert alive.read() == ""  # returns when no worker holds it any more
        assert caller.wait() in (-end, 1, 128 + end)
    assert time.monotonic() - began < 20  # a collective gives up after 300 s
