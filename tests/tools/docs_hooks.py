"""Fills the generated parts of the manual (commands, dialects, engines); checks that the API is documented."""

import importlib
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
_log = logging.getLogger("mkdocs.hooks.eplb")  # `mkdocs build --strict` fails on a warning of mkdocs' loggers


def on_page_markdown(markdown: str, page, **_) -> str:
    """The hook of mkdocs: called with the source of each page."""
    if page.file.src_uri == "reference/cli.md":
        return markdown.replace("<!-- commands -->", "\n".join(command_lines()))
    if page.file.src_uri == "reference/dialects.md":
        return markdown.replace("<!-- dialects -->", "\n".join(dialect_lines()))
    if page.file.src_uri == "explanation/dispatch-rules.md":
        return markdown.replace("<!-- engines -->", "\n".join(engine_lines()))
    if page.file.src_uri.startswith("reference/api"):
        for name in undocumented(markdown):
            _log.warning("%s: no docstring", name)
    return markdown


def command_lines() -> Iterator[str]:
    """The reference of every command, as Markdown."""
    import typer.main

    from eplb_cli.main import app

    yield from _command("eplb", typer.main.get_command(app))


def dialect_lines() -> Iterator[str]:
    """The table of dialects of loads and traces, as Markdown."""
    from eplb_traces import READERS

    yield "| dialect | files | recognised by | becomes | refuses |\n|---|---|---|---|---|"
    for name, of in READERS.items():
        suffixes = " ".join(f"`{suffix}`" for suffix in of.SUFFIXES) or "folder"
        yield f"| `{name}` | {suffixes} | {_cell(of.RECOGNISED_BY)} | {_cell(of.BECOMES)} | {_cell(of.REFUSES)} |"


def engine_lines() -> Iterator[str]:
    """The table of engines' dispatch rules, as Markdown."""
    from eplb.dispatch.engine_dispatch import ENGINE_DISPATCH

    yield "| engine | version | options | rule | evidence | source | note |\n|---|---|---|---|---|---|---|"
    for row in ENGINE_DISPATCH:
        options = "; ".join(f"{name} = {', '.join(values)}" for name, values in row.options.items())
        rule = "refused" if row.rule is None else f"`{row.rule}`"
        head = f"| `{row.engine}` | {row.version} | {options} | {rule} | {row.evidence} "
        yield f"{head}| {_cell(row.source)} | {_cell(row.note)} |"


def _command(path: str, command) -> Iterator[str]:
    if command.params and path != "eplb":
        arguments = " ".join(_usage(one) for one in command.params if one.param_type_name == "argument")
        yield f"\n## {path}\n\n```\n{path} [OPTIONS] {arguments}\n```\n\n{inspect.cleandoc(command.help or '')}\n"
        yield "| | | default |\n|---|---|---|"
        for one in command.params:
            names = one.metavar if one.param_type_name == "argument" else ", ".join((*one.opts, *one.secondary_opts))
            value = f" {one.metavar}" if one.param_type_name == "option" and one.metavar else ""
            yield f"| `{names}{value}` | {_cell(one.help or '')} | {_default(one)} |"
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", below)


def _usage(argument) -> str:
    return argument.metavar + ("..." if argument.nargs == -1 else "")


def _default(parameter) -> str:
    if parameter.required:
        return "required"
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    return _cell(str(shown)) if isinstance(shown, str | int | float) and shown is not False else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def undocumented(page: str) -> list[str]:
    """Public names that a page of the API shows and that have no docstring."""
    return [name for shown in re.findall(r"^::: (\S+)$", page, re.MULTILINE) for name in _without_docstring(shown)]


def _without_docstring(name: str) -> Iterator[str]:
    found = _resolve(name)
    if not inspect.getdoc(found):
        yield name
    if inspect.ismodule(found):
        for public in found.__all__:
            yield from _without_docstring(f"{name}.{public}")
    elif inspect.isclass(found):
        for key, member in vars(found).items():
            is_code = isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
            if is_code and not key.startswith("_") and not inspect.getdoc(member):
                yield f"{name}.{key}"


def _resolve(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(_resolve(module), attribute)
