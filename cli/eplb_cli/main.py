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
from eplb_cli.exit_codes import exit_code_of, sentence_of


@final
class _ErrorsAreExitCodes(typer.core.TyperGroup):
    """The handler of every command's errors."""

    # Any is the context of whichever click the installed typer brings.
    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run a command; what it refuses on purpose ends with one line on stderr and the code of `status`."""
        try:
            result = super().invoke(ctx)
            output.flush()
            return result
        except Exception as error:
            code = exit_code_of(error)
            if code is None:
                raise
            output.error(sentence_of(error))
            raise typer.Exit(code) from error


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
    4 infeasible, 5 verification failed, 6 output incomplete.
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


def main() -> None:
    """Entry point of the `eplb` script."""
    output.print_any_text()
    app()
