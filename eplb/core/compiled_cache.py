"""Compiles every kernel of this installation into numba's cache, and finds the folders that hold it."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

_PACKAGES: Final = ("eplb_traces", "eplb")
_MOST_PROCESSES: Final = 4
"""Each takes some hundred megabytes while it compiles."""


@final
@dataclass(frozen=True)
class KernelFile:
    """A module of kernels, and the machine code that is cached of it.

    Parameters
    ----------
    module
        Its dotted name.
    folder
        Where its machine code is, or would be, kept; None where no folder can be written.
    num_cached
        Kernels of the module in that folder; they may be of an older version.
    """

    module: str
    folder: Path | None
    num_cached: int


def kernel_modules() -> tuple[str, ...]:
    """Dotted names of all modules of kernels but the Triton kernels of `eplb.runtime`, which a GPU compiles."""
    return tuple(
        ".".join([package, *file.relative_to(folder).with_suffix("").parts])
        for package in _PACKAGES
        for folder in (_file_of(package).parent,)
        for file in sorted(folder.rglob("*kernel*.py"))
        if "runtime" not in file.parts
    )


def compile_all(done: Callable[[], object] = lambda: None) -> int:
    """Compile the kernels of all modules, several modules at a time, long files first; cached ones are only loaded.

    Parameters
    ----------
    done
        Called after each module.

    Returns
    -------
    int
        Number of modules.
    """
    modules = sorted(kernel_modules(), key=lambda module: -_file_of(module).stat().st_size)
    with ProcessPoolExecutor(min(_MOST_PROCESSES, os.cpu_count() or 1)) as pool:
        for _ in pool.map(_compile, modules):
            done()
    return len(modules)


def cached_files() -> tuple[KernelFile, ...]:
    """Where the machine code of each module is: beside it, in the user's cache folder, or in `NUMBA_CACHE_DIR`."""
    found = []
    for module in kernel_modules():
        file = _file_of(module)
        folder = _cache_folder(file)
        num_cached = 0 if folder is None else len(list(folder.glob(f"{file.stem}.*.nbi")))
        found.append(KernelFile(module, folder, num_cached))
    return tuple(found)


def _compile(module: str) -> None:
    """Kernels compile where they are decorated."""
    import_module(module)


def _file_of(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin)


def _cache_folder(file: Path) -> Path | None:
    """The folder that numba chooses: the first of its locators that can write."""
    from numba.core.caching import CacheImpl

    for locator_class in CacheImpl._locator_classes:
        locator = locator_class.from_function(_cache_folder, str(file))
        if locator is not None:
            return Path(locator.get_cache_path())
    return None
