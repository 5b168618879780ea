"""Knows how to find the place in an engine where a drop-in goes, and which drop-ins a process was asked for."""

import importlib
import logging
import os
from collections.abc import Mapping
from types import ModuleType

from eplb.errors import EplbError, UnknownNameError

REGISTER_VARIABLE = "EPLB_REGISTER"
ENGINES = ("vllm", "sglang", "ascend")

_logger = logging.getLogger("eplb")


class EngineError(EplbError, ImportError):
    """An engine is not installed, or is of a version without the place that a drop-in goes to."""


def engine_module(name: str, engine: str) -> ModuleType:
    """Import a module of an engine.

    Raises
    ------
    EngineError
        If it cannot be imported, with the reason.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"{engine}: cannot import {name} ({error}): expected {engine} in this environment") from error


def require(found: object, place: str, engine: str) -> None:
    """Refuse an engine that lacks a place.

    Raises
    ------
    EngineError
        If `found` is None.
    """
    if found is None:
        raise EngineError(f"{engine}: there is no {place}, this version of {engine} has another way to choose")


def announce(place: str) -> None:
    """Tell the log what was replaced."""
    _logger.info("eplb plans for this process: replaced %s", place)


def asked_engines(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The engines in the comma-separated variable EPLB_REGISTER; none if it is not set.

    Raises
    ------
    UnknownNameError
        For a name that is no engine's.
    """
    names = tuple(name.strip() for name in environment.get(REGISTER_VARIABLE, "").split(",") if name.strip())
    for name in names:
        if name not in ENGINES:
            raise UnknownNameError(f"engine in {REGISTER_VARIABLE}", name, ENGINES)
    return names
