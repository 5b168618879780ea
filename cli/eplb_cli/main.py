"""Registers the commands and turns errors into exit codes.

Importing this module loads typer and the standard library only, so that `--help` and completion stay quick.
"""

from importlib import metadata
from typing import Annotated, Any, final

import typer
import typer.core

from eplb_cli import output
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
from eplb_cli.process_exit import run_and_exit


@final
class _ErrorsAreExitCodes(typer.core.TyperGroup):
    """The handler of every command's errors."""

    # Any is the context of whichever click the installed typer brings.
    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run a command; what it refuses on purpose ends with one line on stderr and the code of `status`."""
        with errors_are_exit_codes():
            return super().invoke(ctx)


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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Plan where the experts of a Mixture-of-Experts model live, from the load that its router caused.

    The result goes to stdout, talk and progress to stderr. Exit codes: 0 ok, 1 a bug, 2 usage, 3 bad input,
    4 infeasible, 5 verification failed, 6 stdout lost.
    """
    context.with_resource(output.library_log_on_stderr())


app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("backtest")(backtest.backtest)
app.command("sweep")(sweep.sweep)
app.command("simulate")(simulate.simulate)
app.command("replay")(replay.replay)
app.command("report")(report.report)
app.command("diff")(diff.diff)
app.command("convert")(convert.convert)
app.command("check")(check.check)
app.command("verify")(verify.verify)
app.command("advise")(advise.advise)
app.command("calibrate")(calibrate.calibrate)
app.command("formats")(tables.formats)
app.command("strategies")(tables.strategies)
app.command("env")(env.env)
app.add_typer(trace.app, name="trace")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command line and end the process; the `eplb` script calls it."""
    run_and_exit(app)
