"""Reads the error words that kernels write, and raises them as exceptions.

An error word is a kind, the family of the exchange and a rank: kind | family << 8 | rank << 16. The rank that detects
an error writes the word into its entry of `errors` in the region of every rank, so that every rank raises.
"""

from enum import IntEnum

from torch import Tensor

from eplb.errors import EplbError
from eplb.runtime.exchange.limits import ExchangeOverflowError


class ErrorKind(IntEnum):
    """What a kernel detected."""

    TIMEOUT = 1
    ROWS_OVERFLOW = 2
    TOKENS_OVERFLOW = 3
    BAD_SLOT = 4


class Family(IntEnum):
    """The exchange in which it was detected."""

    CHOICES = 0
    DISPATCH = 1
    COMBINE = 2


class ExchangeTimeoutError(EplbError):
    """A rank waited longer than the limit for the data of another rank."""


def raise_on_error(errors_P: Tensor, timeout_s: float) -> None:
    """Raise the first error word, if any rank reported one.

    Parameters
    ----------
    errors_P
        [P] int32 error word of each reporting rank; the host waits for it.
    timeout_s
        Limit of a wait, for the message.

    Raises
    ------
    ExchangeTimeoutError
        If a rank waited too long for another.
    ExchangeOverflowError
        If a rank has more tokens, or its experts more rows, than the buffers hold, or a slot does not exist.
    """
    words = errors_P.tolist()
    for reporter in sorted(range(len(words)), key=lambda rank: words[rank] & 0xFF != ErrorKind.TIMEOUT):
        word = words[reporter]
        if word == 0:
            continue
        kind, family, rank = ErrorKind(word & 0xFF), Family(word >> 8 & 0xFF).name.lower(), word >> 16
        match kind:
            case ErrorKind.TIMEOUT:
                raise ExchangeTimeoutError(
                    f"rank {reporter} waited {timeout_s:g} s for rank {rank} in {family}: the rank has failed, "
                    "stalled or executed another number of steps"
                )
            case ErrorKind.ROWS_OVERFLOW:
                raise ExchangeOverflowError(f"rank {reporter}: more rows for its experts than max_rows")
            case ErrorKind.TOKENS_OVERFLOW:
                raise ExchangeOverflowError(f"rank {reporter}: more tokens than the capacity of the region")
            case ErrorKind.BAD_SLOT:
                raise ExchangeOverflowError(f"rank {reporter}: a selection has a slot that does not exist")
