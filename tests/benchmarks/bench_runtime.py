"""The runtime's rows on the GPUs of this machine.

    PYTHONPATH=.:traces python tests/benchmarks/bench_runtime.py [--rows R6,R7] [--processes 2] [--json]

Each group of rows is a file in `runtime_rows`, which describes how it measures.

Every row in one visit, one command a line, each under a limit of seconds; 400 s together were enough on two H200.
Correctness first, so that no time is taken of a wrong kernel. What needs a pair of GPUs (P) prints "nothing was
measured" on one::

    export PYTHONPATH=.:traces:cli TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NCCL_NVLS_ENABLE=0
    timeout 100 python -m tests.benchmarks.symmetric_loopback                       # kernels, virtual ranks
    timeout 120 python -m pytest -q tests/runtime/layer/test_captured.py            # eager equals replay, every rule
    timeout 100 python -m pytest -q tests/runtime/test_live_migration.py -k nccl    # P  peer memory, injected faults
    timeout 100 python tests/benchmarks/bench_verifier.py                           # P  every backend, rule, fault
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows R1-R5        # P  dispatch and combine
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows modes,failures   # P  modes; a rank that fails
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows R9-R11       # P  whole layers, beside NCCL
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows R7           # P  migration beside layers
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows R6,L1        # FFN; one process in a graph
    timeout 100 python tests/benchmarks/bench_runtime.py --json --rows backends     # P  eager NCCL backends
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runtime_rows import backends, captured_layer, exchange, failures, ffn, layer, migration, modes

OF_GROUPS = {
    "R1-R5": exchange,
    "R7": migration,
    "R9-R11": layer,
    "modes": modes,
    "failures": failures,
    "backends": backends,
}
ROWS = {"R6": ffn, "L1": captured_layer} | OF_GROUPS


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--processes", type=int, default=2, help="GPUs of the rows of several ranks")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    wanted = arguments.rows.split(",")
    if unknown := sorted(set(wanted) - set(ROWS)):
        print(f"rows {', '.join(unknown)}: expected some of {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("needs a GPU: nothing was measured", file=sys.stderr)
        return 0
    device = torch.cuda.get_device_name(0)
    print(f"{device}, torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    words = {"processes": arguments.processes}
    results = {row: ROWS[row].measure(**words if row in OF_GROUPS else {}) for row in wanted}
    if arguments.json:
        print(json.dumps({row: ROWS[row].as_dicts(found) for row, found in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
