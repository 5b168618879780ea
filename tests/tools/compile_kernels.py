"""Compiles the kernels of an installed eplb into numba's cache, two files at a time.

Run before tests that run in several processes: otherwise each of them compiles what another is compiling.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def kernel_modules() -> list[str]:
    """Dotted names of the modules of kernels."""
    folders = {package: Path(find_spec(package).origin).parent for package in ("eplb_traces", "eplb")}
    return [
        ".".join([package, *file.relative_to(folder).with_suffix("").parts])
        for package, folder in folders.items()
        for file in sorted(folder.rglob("*kernel*.py"))
        if "runtime" not in file.parts  # its kernels are Triton's, and need torch
    ]


def compile_module(name: str) -> None:
    """Import a module; its kernels compile where they are decorated, unless the cache holds them."""
    import_module(name)


if __name__ == "__main__":
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for _ in pool.map(compile_module, kernel_modules()):
            pass  # raises what a kernel raised
