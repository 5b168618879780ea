"""Resolves the public names of a package on first access (PEP 562), so that its import loads nothing else."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_names(
    package: str, home_of: Mapping[str, str], public: Sequence[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the module functions `__getattr__` and `__dir__` of a package.

    A name that was resolved is stored in the package: later accesses do not come here. Modules and subpackages of the
    package are imported on first access too, as ``import package.name`` would.

    Parameters
    ----------
    package
        Name of the package.
    home_of
        Public name -> the module that defines it.
    public
        What `dir` and completion list: `__all__` of the package.

    Returns
    -------
    tuple
        `__getattr__`, which raises AttributeError for a name that is neither public nor a module of the package, and
        `__dir__`.
    """

    def get(name: str) -> object:
        if name in home_of:
            value: object = getattr(import_module(home_of[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        from importlib.util import find_spec

        if find_spec(f"{package}.{name}") is None:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=sys.modules[package])
        return import_module(f"{package}.{name}")

    def names() -> list[str]:
        return sorted(public)

    return get, names
