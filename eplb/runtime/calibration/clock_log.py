"""Logs clocks, power and temperature of a GPU while something runs on it."""

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, final

import torch

_QUERY = ("clocks.sm", "power.draw", "temperature.gpu")
_UNITS = ("SM clock {} MHz", "power {} W", "temperature {}")
_LIMITS = "clocks.max.sm,clocks.mem,power.limit"
_INTERVAL_MS = 100


@final
class ClockLog:
    """What the driver's tool printed, one line a sample: SM clock in MHz, watts, degrees."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, ...]] = []

    def add(self, text: str) -> None:
        """Take the lines of the tool; those that are no numbers are left out."""
        for line in text.splitlines():
            parts = [part.strip() for part in line.split(",")]
            if len(parts) == len(_QUERY) and all(part.replace(".", "", 1).isdecimal() for part in parts):
                self.samples.append(tuple(float(part) for part in parts))

    def summary(self) -> str:
        """Median of each quantity, least and most in brackets."""
        if not self.samples:
            return "clocks unknown"
        texts = []
        for name, values in zip(_UNITS, zip(*self.samples, strict=True), strict=True):
            texts.append(name.format(f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"))
        return ", ".join(texts)


@contextmanager
def logged_clocks(device: torch.device) -> Iterator[ClockLog]:
    """Sample the clocks ten times a second until the block ends; nothing where the tool is missing."""
    log, tool = ClockLog(), shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        yield log
        return
    command = [tool, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits", f"--id={device.index or 0}"]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([*command, f"--loop-ms={_INTERVAL_MS}"], stdout=printed, stderr=subprocess.DEVNULL)
        try:
            yield log
        finally:
            process.terminate()
            process.wait()
            log.add(_everything(printed))


def limits(device: torch.device) -> str:
    """Highest SM clock, memory clock and power limit, in words."""
    tool = shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        return "clocks unknown"
    command = [tool, f"--query-gpu={_LIMITS}", "--format=csv,noheader", f"--id={device.index or 0}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    values = answer.stdout.strip().split(", ")
    if answer.returncode or len(values) != len(_LIMITS.split(",")):
        return "clocks unknown"
    return f"SM clock at most {values[0]}, memory clock {values[1]}, power limit {values[2]}"


def _everything(printed: IO[str]) -> str:
    printed.seek(0)
    return printed.read()
