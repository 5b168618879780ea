"""Makes strategies of callables that are not in eplb: passed in Python, named as module:object, or installed.

The callable takes a `Problem` and a seed. It returns a `Plan`, or the map [L, P] of which a certified plan is made.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan, Problem, Strategy
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan

ENTRY_POINTS: Final = "eplb.strategies"
"""The group of entry points in which a package names its strategies."""


class StrategyFunction(Protocol):
    """A function that plans."""

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan | NDArray[np.integer]:
        """Return a plan, or the logical expert of every slot [L, P]."""
        ...


StrategyLike = str | Strategy | StrategyFunction | type[Strategy]
"""A name of the table, "module:object", a strategy, its class, or a function that plans."""


@final
@dataclass(frozen=True)
class OwnStrategy:
    """A strategy that is not in eplb's table; `as_strategy` makes it."""

    name: str
    summary: str
    function: Callable[..., object]

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Call the function and certify its map, if it returns one.

        Raises
        ------
        InputError
            If the function returns neither a plan nor a map of integers [L, P].
        """
        made = self.function(problem, seed=seed)
        if isinstance(made, Plan):
            return made
        if not isinstance(made, np.ndarray) or made.dtype.kind not in "iu":
            kind = f"array of {made.dtype}" if isinstance(made, np.ndarray) else type(made).__name__
            raise InputError(f"strategy {self.name} returned {kind}: expected a Plan, or expert ids as an array [L, P]")
        if made.shape != (problem.load.num_layers, problem.topology.num_slots):
            expected = (problem.load.num_layers, problem.topology.num_slots)
            raise InputError(f"strategy {self.name} returned a map of shape {made.shape}: expected {expected}, [L, P]")
        return certified_plan(problem, made.astype(np.int32), strategy=self.name, seed=seed)


def as_strategy(value: object) -> Strategy:
    """The strategy that a callable is.

    Parameters
    ----------
    value
        An object or class with a name, or a function, whose name and first line of documentation are taken.

    Raises
    ------
    InputError
        If it cannot be called as ``strategy(problem, seed=0)``, or has no name.
    """
    function = _instance(value) if inspect.isclass(value) else value
    if isinstance(function, OwnStrategy):
        return function
    if not callable(function):
        raise InputError(f"strategy is of type {type(value).__name__}: expected a name, or a callable")
    name = getattr(function, "name", None) or getattr(function, "__name__", None)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise InputError(
            f"strategy of type {type(function).__name__} has the name {name!r}: expected a function with a name, or an "
            "object whose `name` has letters, digits, dots and dashes only"
        )
    try:
        inspect.signature(function).bind(None, seed=0)
    except (TypeError, ValueError) as error:
        raise InputError(f"strategy {name} cannot be called as strategy(problem, seed=0): {error}") from error
    summary = getattr(function, "summary", None) or (inspect.getdoc(function) or "not documented").splitlines()[0]
    return OwnStrategy(name, str(summary), function)


def _instance(value: type) -> object:
    try:
        return value()
    except TypeError as error:
        raise InputError(
            f"strategy class {value.__name__}: expected one without arguments, or an object of it ({error})"
        ) from error


def imported_strategy(text: str) -> Strategy:
    """The strategy that "module:object" or "file.py:object" names.

    Raises
    ------
    InputError
        If there is no such module, file or object, the module cannot be imported, or the object is no strategy.
    """
    place, _, name = text.rpartition(":")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place)
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise InputError(f"strategy {text!r}: {place} has no {name!r}") from error
    return as_strategy(found)


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"strategy: module {name!r} cannot be imported ({error}): expected a module on the Python path, or a file "
            "as in snake.py:Snake"
        ) from error


def _module_of_file(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"strategy: no file {path}")
    name = f"eplb_own_strategy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"strategy: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def installed_strategies() -> dict[str, EntryPoint]:
    """{name: entry point} of the strategies that installed packages offer, not yet imported.

    Raises
    ------
    InputError
        If two packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if found.setdefault(entry.name, entry).value != entry.value:
            raise InputError(
                f"strategy {entry.name!r} is offered as {found[entry.name].value} and {entry.value}: expected one"
            )
    return found


def load_installed(entry: EntryPoint) -> Strategy:
    """The strategy of an entry point.

    Raises
    ------
    InputError
        If it cannot be imported, is no strategy, or has another name than the entry point.
    """
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"strategy {entry.name!r} of {entry.value} cannot be imported: {error}") from error
    strategy = as_strategy(loaded)
    if strategy.name != entry.name:
        raise InputError(f"strategy {entry.name!r} of {entry.value} has the name {strategy.name!r}: expected the same")
    return strategy
