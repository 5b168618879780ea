"""Finds the attribute of an engine to replace, and reads from the environment which engines to register for."""

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
    """An engine is not installed, or its version does not have the attribute to replace."""


def engine_module(name: str, engine: str) -> ModuleType:
    """Import a module of an engine.

    Raises
    ------
    EngineError
        If the import fails, with the reason.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"{engine}: cannot import {name} ({error}): expected {engine} in this environment") from error


def require(found: object, place: str, engine: str) -> None:
    """Check that an engine has the attribute to replace.

    Raises
    ------
    EngineError
        If `found` is None.
    """
    if found is None:
        raise EngineError(f"{engine}: expected {place}, which this version of {engine} does not have")


def announce(place: str) -> None:
    """Log what was replaced."""
    _logger.info("eplb plans for this process: replaced %s", place)


def engines_to_register(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The engines in the comma-separated variable EPLB_REGISTER; none if it is not set.

    Raises
    ------
    UnknownNameError
        For an unknown engine.
    """
    names = tuple(name.strip() for name in environment.get(REGISTER_VARIABLE, "").split(",") if name.strip())
    for name in names:
        if name not in ENGINES:
            raise UnknownNameError(f"engine in {REGISTER_VARIABLE}", name, ENGINES)
    return names
