"""Maps errors to exit codes and to one-line messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from eplb_cli import output

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
READER_GONE: Final = 141
"""Exit code when the reader of stdout went away, as in `eplb compare ... | head -3`: 128 + SIGPIPE."""


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    BUG = 1
    """Anything unexpected; Python's own code for an uncaught exception."""
    USAGE = 2
    """A wrong option (the code of the option parser), or a feature whose extra is not installed."""
    BAD_INPUT = 3
    """A file or value that is not what it has to be, or a path that cannot be read or written. Nothing was written."""
    INFEASIBLE = 4
    """No placement meets the constraints, or none was found."""
    VERIFICATION_FAILED = 5
    """A runtime did not execute the plan as written."""
    INCOMPLETE_OUTPUT = 6
    """Some of the output was written and the rest could not be; or stdout is closed or cannot be written."""


@contextmanager
def errors_are_exit_codes() -> Iterator[None]:
    """What is refused on purpose in the block ends with one line on stderr and its exit code.

    Raises
    ------
    typer.Exit
        With the code; a bug is raised as it is.
    """
    import typer

    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError as error:
        raise typer.Exit(READER_GONE) from error
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        output.error(sentence_of(error))
        raise typer.Exit(code) from error


def exit_code_of(error: Exception) -> ExitCode | None:
    """The exit code of an error made for the user; None for a bug, which deserves its traceback."""
    from eplb.errors import EplbError, IncompleteOutputError, InfeasibleError, MissingExtraError, VerificationError

    if isinstance(error, BrokenPipeError):  # no error of the user: see `errors_are_exit_codes`
        return None
    if isinstance(error, MissingExtraError):
        return ExitCode.USAGE
    if isinstance(error, InfeasibleError):
        return ExitCode.INFEASIBLE
    if isinstance(error, VerificationError):
        return ExitCode.VERIFICATION_FAILED
    if isinstance(error, IncompleteOutputError):
        return ExitCode.INCOMPLETE_OUTPUT
    if isinstance(error, EplbError | OSError):
        return ExitCode.BAD_INPUT
    return None


def sentence_of(error: Exception) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
