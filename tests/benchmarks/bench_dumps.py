"""Seconds and memory of reading large dumps: a .pt file beside torch.load, a load history beside json.loads.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_dumps.py [MEGABYTES]``. The two sides of a row take turns
in one process, best of five; the memory is the growth of the largest resident size of a process of its own (Linux).
json.loads makes lists, not arrays. The .pt files are of SGLang's recorder: one counter [steps, 61, 256], and per-pass
records with a tensor each.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from eplb_traces import read_load
from eplb_traces.files.torch_file import read_torch

LAYERS, EXPERTS = 61, 256
REPEATS = 5
BYTES_PER_COUNT = 7  # of the JSON text


def write_dumps(folder: Path, megabytes: int) -> None:
    """Write the three files, of about this size each."""
    import torch

    rng = np.random.default_rng(0)
    counts = rng.integers(1000, 99_999, (megabytes * 1_000_000 // 4 // LAYERS // EXPERTS, LAYERS, EXPERTS))
    tensor = torch.from_numpy(counts.astype(np.int32))
    torch.save({"logical_count": tensor}, folder / "stat.pt")
    records = [{"forward_pass_id": i, "rank": 0, "global_physical_count": t.clone()} for i, t in enumerate(tensor)]
    slots = torch.arange(EXPERTS).repeat(LAYERS, 1)
    torch.save({"records": records, "last_physical_to_logical_map": slots}, folder / "per_pass.pt")
    windows = counts[: megabytes * 1_000_000 // BYTES_PER_COUNT // LAYERS // EXPERTS].tolist()
    history = {"load_history": [{"logical_expert_load": window} for window in windows]}
    (folder / "expert-load.json").write_text(json.dumps(history))


def read_pt(path: Path) -> object:
    """Read the tensors alone, as torch.load does."""
    with path.open("rb") as file:
        return read_torch(file)


def torch_load(path: Path) -> object:
    """The oracle."""
    import torch

    return torch.load(path, weights_only=True)


def json_load(path: Path) -> object:
    """Read the document as lists."""
    return json.loads(path.read_bytes())


READERS: dict[str, Callable[[Path], object]] = {
    "ours": read_pt,
    "torch.load": torch_load,
    "read_load": read_load,
    "json.loads": json_load,
}
ROWS = (
    ("stat.pt", "ours", "torch.load"),
    ("per_pass.pt", "ours", "torch.load"),
    ("expert-load.json", "read_load", "json.loads"),
)


def megabytes_of(name: str, path: Path) -> float:
    """Growth of the largest resident size while a process of its own reads a file; its imports are done before."""
    command = [sys.executable, __file__, "--measure", name, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, path: Path) -> None:
    """Print that growth in MB."""
    import eplb_traces.readers  # noqa: F401  # before the measurement

    if name == "torch.load":
        import torch  # noqa: F401  # before the measurement
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = largest_resident_mb()
    kept = READERS[name](path)
    print(largest_resident_mb() - before)
    del kept


def largest_resident_mb() -> float:
    """The largest resident size of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def best_pair_s(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The shortest run of each of two actions that take turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for action, seconds in zip((first, second), taken, strict=True):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
    return min(taken[0]), min(taken[1])


def main(megabytes: int) -> None:
    """Print the table."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{'file':18}{'MB':>6}  {'ours, s':>9}{'MB':>6}   {'beside it':12}{'s':>7}{'MB':>7}{'time ratio':>12}")
    with tempfile.TemporaryDirectory() as folder:
        write_dumps(Path(folder), megabytes)
        for file, ours, other in ROWS:
            path = Path(folder) / file
            ours_s, other_s = best_pair_s(partial(READERS[ours], path), partial(READERS[other], path))
            ours_mb, other_mb = megabytes_of(ours, path), megabytes_of(other, path)
            print(
                f"{file:18}{path.stat().st_size / 1e6:6.0f}  {ours_s:9.3f}{ours_mb:6.0f}   {other:12}{other_s:7.3f}"
                f"{other_mb:7.0f}{ours_s / other_s:12.2f}"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
