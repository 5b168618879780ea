"""Maps errors to exit codes and to one-line messages."""

from enum import IntEnum


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
    """Some of the output was written and the rest could not be."""


def exit_code_of(error: Exception) -> ExitCode | None:
    """The exit code of an error made for the user; None for a bug, which deserves its traceback."""
    from eplb.errors import EplbError, IncompleteOutputError, InfeasibleError, MissingExtraError, VerificationError

    if isinstance(error, BrokenPipeError):  # the reader of our output went away: the option parser ends quietly
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
