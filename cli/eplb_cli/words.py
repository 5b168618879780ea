"""Knows which words of a command were typed, to refuse those that would be ignored."""

from collections.abc import Collection

import typer


def refuse_typed(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Refuse words of the command line that have no meaning beside the others.

    Raises
    ------
    typer.BadParameter
        Naming the first word of `names`, long options as they are typed, that the user gave.
    """
    for param in context.command.params:
        source = None if param.name is None else context.get_parameter_source(param.name)
        if param.opts[0] in names and source is not None and not source.name.startswith("DEFAULT"):
            raise typer.BadParameter(reason, param_hint=param.opts[0])
