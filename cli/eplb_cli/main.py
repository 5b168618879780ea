"""Registers the commands and turns errors into exit codes.

Importing this module loads typer and the standard library only, so that `--help` and completion stay quick.
"""

from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, final

import typer
import typer.core

from eplb_cli import output
from eplb_cli.command import register, without_flag_types
from eplb_cli.commands import (
    advise,
    backtest,
    cache,
    calibrate,
    check,
    compare,
    convert,
    diff,
    env,
    evaluate,
    plan,
    replay,
    report,
    simulate,
    sweep,
    tables,
    trace,
    verify,
)
from eplb_cli.exit_codes import errors_are_exit_codes
from eplb_cli.global_options import COLOR, log_level, set_color
from eplb_cli.help.panels import panel_of_command
from eplb_cli.process_exit import run_and_exit
from eplb_cli.settings import CONFIG_FILE, CONFIG_VARIABLE


@final
class _ErrorsAreExitCodes(typer.core.TyperGroup):
    """The root of the tree: the handler of every command's errors."""

    # Any is the context of whichever click the installed typer brings.
    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run a command; what it refuses on purpose ends with one line on stderr and the code of `status`."""
        with errors_are_exit_codes():
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401
        """The options of all commands."""
        return without_flag_types(super().get_params(ctx))


app = typer.Typer(
    name="eplb",
    cls=_ErrorsAreExitCodes,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            output.line(f"eplb {metadata.version('eplb')}")
        except metadata.PackageNotFoundError:
            output.line("eplb (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar=CONFIG_VARIABLE,
            help="Topology of the options that are not typed: TOML with ranks, nodes, redundant, engine, ...",
            show_default=f"{CONFIG_FILE} in this folder, if there is one",
        ),
    ] = None,
    color: Annotated[
        str,
        typer.Option(
            "--color",
            metavar="WHEN",
            parser=COLOR.one,
            autocompletion=COLOR.complete,
            help="auto: on a terminal, unless NO_COLOR is set; always; never.",
        ),
    ] = "auto",
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors alone.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what the library logs, and where an error comes from.")
    ] = False,
) -> None:
    """Plan where the experts of a Mixture-of-Experts model live, from the load that its router caused.

    The result goes to stdout, talk and progress to stderr.

    Exit codes: 0 ok, 1 a bug, 2 usage, 3 bad input, 4 infeasible, 5 verification failed, 6 output incomplete.
    """
    if quiet and verbose:
        raise typer.BadParameter("cannot be combined with --verbose", param_hint="--quiet")
    if quiet:
        context.with_resource(output.quiet())
    context.with_resource(output.library_log_on_stderr(log_level(quiet=quiet, verbose=verbose)))
    set_color(color)


register(app, "plan", plan.plan)
register(app, "compare", compare.compare)
register(app, "evaluate", evaluate.evaluate)
register(app, "backtest", backtest.backtest)
register(app, "sweep", sweep.sweep)
register(app, "simulate", simulate.simulate)
register(app, "replay", replay.replay)
register(app, "report", report.report)
register(app, "diff", diff.diff)
register(app, "convert", convert.convert)
register(app, "check", check.check)
register(app, "verify", verify.verify)
register(app, "advise", advise.advise)
register(app, "calibrate", calibrate.calibrate)
register(app, "formats", tables.formats)
register(app, "strategies", tables.strategies)
register(app, "env", env.env)
app.add_typer(trace.app, name="trace", rich_help_panel=panel_of_command("trace"))
app.add_typer(cache.app, name="cache", rich_help_panel=panel_of_command("cache"))


def main() -> None:
    """Run the command line and end the process; the `eplb` script calls it."""
    output.print_any_text()
    run_and_exit(app)
