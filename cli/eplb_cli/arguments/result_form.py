"""Defines the form of a result for programs: `--json` or `--csv`, not both."""

from typing import Annotated

import typer


def _only_form(context: typer.Context, param: typer.CallbackParam, wanted: bool) -> bool:
    """Refuse a second form."""
    option = param.opts[0]
    if wanted and context.meta.setdefault("eplb.form", option) != option:
        raise typer.BadParameter(f"cannot be given with {context.meta['eplb.form']}", param_hint=option)
    return wanted


JsonOpt = Annotated[bool, typer.Option("--json", callback=_only_form, help="Print one JSON object instead of tables.")]
CsvOpt = Annotated[
    bool,
    typer.Option(
        "--csv", callback=_only_form, help="Print the rows of the table as CSV, fields and digits as in --json."
    ),
]
