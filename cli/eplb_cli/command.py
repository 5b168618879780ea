"""Defines the class of every command: its options are in panels, and old spellings of options are still read.

The names of an option from a second long name on are old spellings: `typer.Option("--to", "--format", "-f")` shows
`--to` alone and reads all three.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import typer
import typer.core

from eplb_cli.help.examples import epilog_of
from eplb_cli.help.panels import OPTION_PANELS, panel_of_command, panel_of_option


# Any: contexts, parameters and parsers are those of whichever click the installed typer brings.
@final
class Command(typer.core.TyperCommand):
    """A command of the tree."""

    def __init__(self, name: str | None, **attributes: Any) -> None:  # noqa: ANN401
        super().__init__(name, **attributes)
        self.help = _unwrapped(self.help)
        self._old_spellings: dict[typer.core.TyperOption, list[str]] = {}
        for param in self.params:
            if isinstance(param, typer.core.TyperOption):
                param.rich_help_panel = panel_of_option(param.opts[0])
                self._old_spellings[param] = _cut_old_spellings(param)
        self.params.sort(key=_rank_of_panel)

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401
        """The parameters, --help among them."""
        return without_flag_types(super().get_params(ctx))

    def make_parser(self, ctx: Any) -> Any:  # noqa: ANN401
        """The parser, which reads old spellings too."""
        parser = super().make_parser(ctx)
        for option, names in self._old_spellings.items():
            if option.is_flag:
                parser.add_option(obj=option, opts=names, dest=option.name, action="store_const", const=True)
            else:
                action = "append" if option.multiple else "store"
                parser.add_option(obj=option, opts=names, dest=option.name, action=action, nargs=option.nargs)
        return parser


@final
class Group(typer.core.TyperGroup):
    """A group of commands below the root."""

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401
        """The parameters, --help among them."""
        return without_flag_types(super().get_params(ctx))


def without_flag_types(params: Any) -> Any:  # noqa: ANN401
    """The parameters; a flag takes no value, so its type is not shown."""
    for param in params:
        if isinstance(param, typer.core.TyperOption) and param.is_flag:
            param.metavar = ""
    return params


def _rank_of_panel(param: object) -> int:
    """Arguments before options, options in the order of the panels."""
    order = list(OPTION_PANELS)
    if not isinstance(param, typer.core.TyperOption):
        return -1
    return len(order) if param.rich_help_panel is None else order.index(param.rich_help_panel)


def _unwrapped(text: str | None) -> str | None:
    """Each paragraph of a docstring on one line: the terminal wraps it."""
    return None if text is None else "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cut_old_spellings(option: typer.core.TyperOption) -> list[str]:
    """Take the names from the second long one on out of an option."""
    long = [index for index, name in enumerate(option.opts) if name.startswith("--")]
    end = long[1] if len(long) > 1 else len(option.opts)
    option.opts, old = option.opts[:end], option.opts[end:]
    return old


def register(app: typer.Typer, name: str, function: Callable[..., None], group: Sequence[str] = ()) -> None:
    """Add a command to the tree, `group` being the names above it."""
    path = " ".join((*group, name))
    app.command(name, cls=Command, epilog=epilog_of(path), rich_help_panel=panel_of_command(path))(function)
