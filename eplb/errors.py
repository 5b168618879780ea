"""Defines the errors of the planner. All are `EplbError`; `eplb_cli.exit_codes` maps them to exit codes."""

from collections.abc import Iterable

from eplb_traces.errors import EplbError, IncompleteOutputError, InputError, MissingExtraError

__all__ = [
    "EplbError",
    "FormatError",
    "IncompleteOutputError",
    "InfeasibleError",
    "InputError",
    "MissingExtraError",
    "PlacementError",
    "UnknownNameError",
    "VerificationError",
]


class PlacementError(InputError):
    """A placement or topology that cannot exist: an expert without a slot, an id out of range, uneven ranks."""


class FormatError(InputError):
    """A file that is not in the dialect it claims, or a placement that the dialect cannot express."""


class UnknownNameError(InputError):
    """A name that is in no table. The message lists the known names, and `hint` behind them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self._asked = (kind, name, tuple(sorted(known)), hint)
        super().__init__(f"unknown {kind} {name!r}: expected one of {', '.join(self._asked[2])}{hint}")

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, str, tuple[str, ...], str]]:
        return type(self), self._asked


class InfeasibleError(EplbError):
    """No placement meets the constraints, or none was found within the limit."""


class VerificationError(EplbError):
    """The runtime does not behave as the plan requires."""
