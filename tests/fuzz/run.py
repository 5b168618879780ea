"""Plans and checks many random cases; `make fuzz` runs it. Prints a line for every case that fails, then the counts.

The exit code is 1 if a plan is invalid, a claim differs from the judge, a bound is above it, or anything but a named
error is raised, a warning included. A case that does not end in `MOST_SECONDS`, in which kernels may have to be
compiled, ends the run with a traceback.
"""

import argparse
import faulthandler
import os
import time
import traceback
import warnings
from collections import Counter

from eplb.errors import EplbError
from tests.fuzz.cases import Case, case
from tests.fuzz.check import check

MOST_SECONDS = 300.0


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


def run(first: int, number: int, *, seconds: float) -> tuple[Counter[tuple[str, str]], list[int]]:
    """Outcomes by strategy, and the numbers of the cases that failed; ends early when the time is up."""
    outcomes: Counter[tuple[str, str]] = Counter()
    failed = []
    end = time.monotonic() + seconds
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=int(os.environ.get("EPLB_FUZZ_CASES", "10000")))
    parser.add_argument("--first", type=int, default=int(os.environ.get("EPLB_FUZZ_FIRST", "0")))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("EPLB_FUZZ_SECONDS", "inf")))
    asked = parser.parse_args()
    warnings.simplefilter("error")
    outcomes, failed = run(asked.first, asked.cases, seconds=asked.seconds)
    for (strategy, what), count in sorted(outcomes.items()):
        print(f"{strategy:12} {what:18} {count}")
    print(f"{sum(outcomes.values()) + len(failed)} cases from {asked.first} on, {len(failed)} failed {failed[:20]}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
