"""Runs the command line and ends the process, also after Ctrl-C and where stdout is closed, full or no longer read."""

import sys
from collections.abc import Callable

from eplb_cli import output
from eplb_cli.exit_codes import INTERRUPTED, READER_GONE, ExitCode


def run_and_exit(app: Callable[[], object]) -> None:
    """Run the command that was typed, print what is buffered, and end with the exit code."""
    try:
        sys.exit(_run(app))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run(app: Callable[[], object]) -> int:
    from eplb_traces.errors import IncompleteOutputError

    if output.is_closed():
        output.error("stdout is closed: nothing was done")
        return ExitCode.INCOMPLETE_OUTPUT
    code = _code_of(app)
    try:
        output.flush()
    except BrokenPipeError:
        return READER_GONE
    except IncompleteOutputError as error:
        output.error(str(error))
        return ExitCode.INCOMPLETE_OUTPUT
    return code


def _code_of(app: Callable[[], object]) -> int:
    try:
        app()
    except SystemExit as ended:
        # A bug is no SystemExit. typer and rich end with 1 when the reader of a help goes away.
        return READER_GONE if ended.code == 1 else int(ended.code or 0)
    return 0
