"""Plans and checks many random cases; `make fuzz` runs it. Prints a line for every case that fails, then the counts.

The exit code is 1 if a plan is invalid, a claim differs from the judge, a bound is above it, or anything but a named
error is raised, a warning included. A case that does not end in `MOST_SECONDS`, in which kernels may have to be
compiled, ends the run with a traceback. Every core has a process of its own.
"""

import argparse
import faulthandler
import os
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

from eplb.errors import EplbError
from eplb_traces.usable_cores import usable_cores
from tests.fuzz.cases import Case, case
from tests.fuzz.check import check

MOST_SECONDS = 300.0
BLOCK = 500
"""Cases that a process takes at once."""


def outcome(asked: Case) -> str:
    """ "planned", or the class of the named error by which the case is refused; AssertionError if the plan is wrong."""
    try:
        made = asked.plan()
    except EplbError as error:
        if not str(error):
            raise AssertionError("an error without a message") from error
        return type(error).__name__
    check(asked, made)
    return "planned"


Outcomes = Counter[tuple[str, str]]
"""Cases by strategy and outcome."""


def run_block(end: float, block: tuple[int, int]) -> tuple[Outcomes, list[int]]:
    """The outcomes of a first case and a number of them, and which ones failed; stops at `end` on the steady clock."""
    first, number = block
    outcomes: Outcomes = Counter()
    failed = []
    for at in range(first, first + number):
        if time.monotonic() > end:
            break
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        asked = case(at)
        try:
            outcomes[asked.strategy, outcome(asked)] += 1
        except Exception:
            failed.append(at)
            place = traceback.format_exc(limit=-1).strip().replace("\n", " | ")
            print(f"case {at} ({asked.strategy}, {asked.topology}, {asked.options}): {place}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    return outcomes, failed


def prepare(cores: SimpleQueue[int]) -> None:
    """Take a core for this process, which then plans with one thread, and raise on every warning."""
    os.sched_setaffinity(0, {cores.get()})
    warnings.simplefilter("error")


def run(first: int, number: int, *, seconds: float, processes: int) -> tuple[Outcomes, list[int]]:
    """Outcomes of all cases, and the numbers of those that failed; ends early when the time is up."""
    context = get_context("spawn")
    cores: SimpleQueue[int] = context.SimpleQueue()
    for core in islice(cycle(sorted(os.sched_getaffinity(0))), processes):
        cores.put(core)
    blocks = [(at, min(BLOCK, first + number - at)) for at in range(first, first + number, BLOCK)]
    outcomes: Outcomes = Counter()
    failed: list[int] = []
    work = partial(run_block, time.monotonic() + seconds)
    with ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(cores,)) as pool:
        for done, failed_there in pool.map(work, blocks):
            outcomes += done
            failed += failed_there
    return outcomes, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=int(os.environ.get("EPLB_FUZZ_CASES", "10000")))
    parser.add_argument("--first", type=int, default=int(os.environ.get("EPLB_FUZZ_FIRST", "0")))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("EPLB_FUZZ_SECONDS", "inf")))
    parser.add_argument("--processes", type=int, default=usable_cores(), help="one core each")
    asked = parser.parse_args()
    outcomes, failed = run(asked.first, asked.cases, seconds=asked.seconds, processes=asked.processes)
    for (strategy, what), count in sorted(outcomes.items()):
        print(f"{strategy:12} {what:18} {count}")
    print(f"{sum(outcomes.values()) + len(failed)} cases from {asked.first} on, {len(failed)} failed {failed[:20]}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
