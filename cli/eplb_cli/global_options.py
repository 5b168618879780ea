"""Carries out the options of `eplb` that hold for every command: colour, how much is printed."""

import logging
import os
from typing import Final

from eplb_cli.arguments.choices import Choice


def _colors() -> tuple[str, ...]:
    return ("auto", "always", "never")


COLOR: Final = Choice(_colors)


def set_color(when: str) -> None:
    """Set the variables by which rich, and every process that is started, decide on colour and bold type."""
    if when == "never":
        os.environ["NO_COLOR"] = "1"
        os.environ["TERM"] = "dumb"
        os.environ.pop("FORCE_COLOR", None)
    elif when == "always":
        os.environ["FORCE_COLOR"] = "1"
        os.environ.pop("NO_COLOR", None)
        if os.environ.get("TERM", "dumb") == "dumb":
            os.environ["TERM"] = "xterm-256color"


def log_level(*, quiet: bool, verbose: bool) -> int:
    """The level from which on the library's log is printed."""
    if quiet:
        return logging.WARNING
    return logging.DEBUG if verbose else logging.INFO
