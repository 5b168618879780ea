"""`eplb cache` and `eplb cache build`: where compiled kernels are kept, and all of them compiled at once."""

import os
from typing import TYPE_CHECKING

import typer

from eplb_cli import output
from eplb_cli.arguments.options import JsonOpt
from eplb_cli.command import Group, register

if TYPE_CHECKING:
    from eplb.core.compiled_cache import KernelFile

app = typer.Typer(cls=Group)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: JsonOpt = False) -> None:
    """Show where the machine code of the kernels is kept; build compiles all of it."""
    from eplb.core.compiled_cache import cached_files

    if context.invoked_subcommand is None:
        _show(cached_files(), as_json=as_json)


def build(as_json: JsonOpt = False) -> None:
    """Compile every kernel once, for an image or before many processes start; kernels in the cache are kept.

    The machine code is for the CPU it is compiled on: another CPU compiles anew.
    """
    from eplb.core.compiled_cache import cached_files, compile_all, kernel_modules

    with output.progress("compiling", len(kernel_modules())) as step:
        compile_all(step)
    _show(cached_files(), as_json=as_json)


def _show(files: "tuple[KernelFile, ...]", *, as_json: bool) -> None:
    folders = sorted({str(file.folder) for file in files if file.folder is not None})
    num_kernels = sum(file.num_cached for file in files)
    if as_json:
        output.json_object({"num_kernels": num_kernels, "num_files": len(files), "folders": folders})
        return
    where = [("folder" if not row else "", folder) for row, folder in enumerate(folders)]
    output.facts(
        "Compiled kernels",
        [
            ("in the cache", f"{output.counted(num_kernels, 'kernel')} of {output.counted(len(files), 'file')}"),
            ("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", "not set")),
            *(where or [("folder", "none can be written: every process compiles anew; set NUMBA_CACHE_DIR")]),
        ],
    )


register(app, "build", build, ["cache"])
