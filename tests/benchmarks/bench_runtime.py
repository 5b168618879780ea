"""The runtime's rows on the GPUs of this machine.

    PYTHONPATH=.:traces python tests/benchmarks/bench_runtime.py [--rows R6] [--json]

Each group of rows is a file in `runtime_rows`, which describes how it measures.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runtime_rows import captured_layer, ffn

ROWS = {"R6": ffn, "L1": captured_layer}


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
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
    results = {row: ROWS[row].measure() for row in wanted}
    if arguments.json:
        print(json.dumps({row: ROWS[row].as_dicts(found) for row, found in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
