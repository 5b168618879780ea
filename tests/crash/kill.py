"""Runs a function in a forked process and ends that process with SIGKILL at a given step of the interpreter."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable

Work = Callable[[], object]


def forked(work: Work) -> int:
    """The exit code of a copy of this process that only runs `work`; negative for the signal that ended it."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        process = os.fork()
    if process == 0:
        gc.disable()  # Hypothesis has a callback in the collector, whose calls would be steps at random places
        code = 1
        try:
            code = int(work() or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def num_steps(work: Work) -> int:
    """Calls and returns of Python and C functions while `work` runs."""
    reading, writing = os.pipe()

    def count() -> None:
        steps = 0

        def step(*_: object) -> None:
            nonlocal steps
            steps += 1

        sys.setprofile(step)
        work()
        sys.setprofile(None)
        os.write(writing, str(steps).encode())

    code = forked(count)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    assert code == 0
    return int(text)


def killed_at(work: Work, at: int) -> bool:
    """Run `work` up to a step; False if it ended before."""

    def run() -> None:
        steps = 0

        def step(*_: object) -> None:
            nonlocal steps
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

        sys.setprofile(step)
        work()

    code = forked(run)
    assert code in (0, -signal.SIGKILL), code
    return code != 0
