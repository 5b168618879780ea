"""Defines the class of every command: its options are in panels, and old spellings of options are still read.

The names of an option from a second long name on are old spellings: `typer.Option("--to", "--format", "-f")` shows
`--to` alone and reads all three.
"""

import os
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, final

import typer
import typer.core

from eplb_cli import output
from eplb_cli.arguments.streams import dashes_are_streams
from eplb_cli.help.examples import epilog_of
from eplb_cli.help.panels import OPTION_PANELS, panel_of_command, panel_of_option
from eplb_cli.settings import SETTINGS, Setting, applicable, described, misspelt_variables, read_settings


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

    def parse_args(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Parse what was typed; other options take the values of eplb.toml and the environment."""
        try:
            typed = {param.opts[0] for param in self.make_parser(ctx).parse_args(list(args))[2]}
        except Exception:
            _refuse_options_of_the_root(ctx, args)
            raise
        used = {} if ctx.resilient_parsing or typed & {"-h", "--help"} else self._settings(ctx, typed)
        ctx.default_map = {name: of.values if multiple else of.values[0] for (name, multiple), of in used.items()}
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            for (name, _), setting in used.items():
                if error.param is not None and error.param.name == name:
                    error.message += f" (from {setting.source})"
            raise

    def _settings(self, ctx: Any, typed: Collection[str]) -> dict[tuple[str, bool], Setting]:  # noqa: ANN401
        """{(parameter, whether it takes several values): setting} that are used, after a note about them."""
        places = {
            key: (option.name, option.multiple)
            for option in self._old_spellings
            for key, metavar in SETTINGS.items()
            if option.opts[0] == f"--{key}" and option.metavar == metavar
        }
        if not places:
            return {}
        for wrong, meant in misspelt_variables(os.environ).items():
            output.note(f"note: {wrong} is not read: did you mean {meant}?")
        settings = read_settings(ctx.find_root().params.get("config"), os.environ)
        used = applicable(_path_of(ctx), {key: of for key, of in settings.items() if key in places}, typed)
        for line in described(used):
            output.note(line)
        return {places[key]: of for key, of in used.items()}

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the command; with --verbose an error is preceded by the lines of code that it comes from."""
        try:
            with dashes_are_streams(self.params, ctx.params, _path_of(ctx)):
                return super().invoke(ctx)
        except typer.Exit:
            raise
        except typer.BadParameter as error:
            error.message = output.renamed(error.message)
            raise
        except Exception:
            if ctx.find_root().params.get("verbose"):
                output.note(traceback.format_exc().rstrip())
            raise

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


def _refuse_options_of_the_root(ctx: Any, args: Sequence[str]) -> None:  # noqa: ANN401
    """Show where -q and the like have to be typed."""
    names = {name for param in ctx.find_root().command.params for name in param.opts}
    for word in args:
        if ctx.parent is not None and word.partition("=")[0] in names:
            raise typer.BadParameter(f"expected before the command: eplb {word} {_path_of(ctx)}", param_hint=word)


def _path_of(ctx: Any) -> str:  # noqa: ANN401
    """The words that name the command: "trace info"."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(names)


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
