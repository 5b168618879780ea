"""`eplb verify`: executes a placement on real processes, or on virtual ranks, and checks what they did against it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, cost_options, options
from eplb_cli.arguments.kind_of_file import expecting_placement
from eplb_cli.arguments.parse import check_at_least, refuse_typed
from eplb_cli.commands import verify_virtual
from eplb_cli.views.topology_rows import note_ignored_weights

if TYPE_CHECKING:
    from eplb.runtime import VerifyReport
    from eplb.runtime.verification.tensor_parallel import TensorParallelReport
    from eplb_traces import RoutingTrace

_TOKENS: Final = 64
"""Tokens of each rank, unless the user gives another number."""
_GIVEN_BY_MINDIE: Final = ("--exchange", "--buffer-scale-factors", "--topk-scaling-factor")
_CUT_HIDDEN, _MOST_CUT_TOKENS = 128, 16
"""Sizes of the execution with cut experts, which are generated anew on every process."""


def verify(  # noqa: PLR0913  # one parameter a word of the command line
    context: typer.Context,
    plan_path: options.PlanArg,
    format: options.PlanFormatOpt = None,
    ranks: options.HintRanksOpt = None,
    nodes: options.HintNodesOpt = None,
    processes: Annotated[
        int, typer.Option("--processes", "-p", metavar="P", help="Processes to start; each executes several ranks.")
    ] = 2,
    backend: Annotated[
        str, typer.Option("--backend", "-b", metavar="B", help="gloo (CPU) or nccl (a GPU for each process).")
    ] = "gloo",
    mindie_config: Annotated[
        Path | None,
        typer.Option("--mindie-config", metavar="FILE", help="Exchange and buffer sizes from MindIE's config.json."),
    ] = None,
    exchange: Annotated[
        str,
        typer.Option(
            "--exchange",
            metavar="X",
            parser=choices.EXCHANGE.one,
            autocompletion=choices.EXCHANGE.complete,
            help="all, auto (by bytes), allgather, alltoall or symmetric.",
        ),
    ] = "all",
    dispatch: Annotated[
        str,
        typer.Option(
            "--dispatch",
            metavar="RULE",
            parser=choices.DISPATCH.one,
            autocompletion=choices.DISPATCH.complete,
            help="even, weighted, local_first, online, vllm, sglang_static, sglang_dynamic, ascend or trtllm.",
        ),
    ] = "even",
    tokens_per_rank: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-rank",
            "-t",
            "--tokens",
            metavar="T",
            help="Tokens of each rank.",
            show_default="64; with --virtual by --phase",
        ),
    ] = None,
    trace_path: Annotated[
        Path | None,
        typer.Option("--trace", metavar="TRACE", help="Token-level trace to route by; else a random router."),
    ] = None,
    num_experts: options.NumExpertsOpt = None,
    layers: Annotated[
        str,
        typer.Option("--layers", metavar="IDS", help="Layers to execute: 0,5 or all.", show_default="a few"),
    ] = "",
    hidden: Annotated[
        int, typer.Option("--hidden-size", "--hidden", metavar="H", help="Hidden size of the probe experts.")
    ] = 32,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Experts of a token.", show_default="that of the plan, or 8")
    ] = 0,
    buffer_scale_factors: Annotated[
        str, typer.Option(metavar="JSON", help="All-to-all buffers, as MindIE has them: [[8192, 5.2], [0, 8.0]].")
    ] = "[]",
    topk_scaling_factor: Annotated[
        float, typer.Option(metavar="F", help="Part of the sorted rows that AllGather keeps, as MindIE has it.")
    ] = 1.0,
    overflow: Annotated[
        str,
        typer.Option(
            "--overflow",
            metavar="O",
            parser=choices.OVERFLOW.one,
            autocompletion=choices.OVERFLOW.complete,
            help="raise, or drop: count what a buffer has no room for.",
        ),
    ] = "raise",
    inject: Annotated[
        str,
        typer.Option(
            "--inject",
            metavar="FAULT",
            parser=choices.FAULT.one,
            autocompletion=choices.FAULT.complete,
            help="Break something to see a check fail: swap-weights, drop-row, stale-map, ...",
        ),
    ] = "none",
    record: Annotated[
        Path | None, typer.Option("--record", metavar="OUT", help="Write the measured choices as a trace (.parquet).")
    ] = None,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual",
            help="Execute the experts of all ranks on one device, one rank after the other: seconds of each layer.",
        ),
    ] = False,
    device: cost_options.DeviceOpt = "cuda",
    load_path: Annotated[
        Path | None,
        typer.Option("--load", metavar="LOAD", help="Load to draw the tokens from, with --virtual."),
    ] = None,
    model: cost_options.ModelOpt = None,
    phase: cost_options.PhaseOpt = None,
    calibration: cost_options.CalibrationOpt = None,
    dtype: cost_options.ExecutedTypeOpt = "bf16",
    seed: options.SeedOpt = 0,
    as_json: options.JsonOpt = False,
) -> None:
    """Start processes, let them execute PLAN, and recount everything they did; exit code 5 if anything is wrong."""
    from eplb import runtime
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.formats import ReadHints, read_plan
    from eplb.formats.mindie_config import read_mindie_config
    from eplb.runtime.verification.tensor_parallel import TensorParallelJob, verify_tensor_parallel
    from eplb_traces import write_trace

    with expecting_placement(plan_path):
        plan = read_plan(plan_path, format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    note_ignored_weights(plan.placement, dispatch)
    if virtual:
        asked = verify_virtual.Virtual(
            device=device,
            dtype=dtype,
            dispatch=dispatch,
            seed=seed,
            model=model or "",
            calibration=calibration or "",
            trace=trace_path,
            num_experts=num_experts,
            load=load_path,
            phase=phase or "",
            tokens_per_rank=tokens_per_rank,
            layers=layers,
        )
        verify_virtual.check_typed(context, asked)
        verify_virtual.verify_on_virtual_ranks(plan.placement, asked, plan_path.name, as_json=as_json)
        return
    refuse_typed(context, verify_virtual.ONLY_VIRTUAL, "has no effect without --virtual")
    tokens = _TOKENS if tokens_per_rank is None else tokens_per_rank
    check_at_least(1, {"--processes": processes, "--tokens-per-rank": tokens, "--hidden-size": hidden})
    factors, config = runtime.read_buffer_scale_factors(buffer_scale_factors), None
    if mindie_config is not None:
        refuse_typed(context, _GIVEN_BY_MINDIE, "is given by --mindie-config")
        config = read_mindie_config(mindie_config)
        config.check_ranks(plan.placement.topology.num_ranks)
    cuts = 1 if config is None else config.layout.moe_tp
    request = runtime.VerifyRequest(
        # With cuts of experts the exchange is verified between the ranks of the plan, then the cuts on all processes.
        launch=runtime.Launch(min(processes, plan.placement.topology.num_ranks) if cuts > 1 else processes, backend),
        tokens_per_rank=tokens,
        layers=runtime.read_layers("all" if record else layers, plan.placement.num_layers),
        rule=DispatchRule.named(dispatch),
        exchange=exchange if config is None else config.exchange,
        limits=runtime.ExchangeLimits(
            factors if config is None else config.buffer_scale_factors,
            topk_scaling_factor if config is None else config.topk_scaling_factor,
            runtime.Overflow.named(overflow),
        ),
        hidden=hidden,
        top_k=top_k,
        fault=runtime.Fault.named(inject),
        seed=seed,
    )
    trace = None if trace_path is None else _read_trace(trace_path, num_experts)
    with output.progress(f"executing on {processes} processes"):
        report = runtime.verify(plan, request, trace)
    cut_report = None
    if config is not None:
        job = TensorParallelJob(
            placement=plan.placement,
            layout=config.layout,
            layer=report.layers[0].layer,
            rule=request.rule,
            exchange=config.exchange,
            tokens_per_rank=min(tokens, _MOST_CUT_TOKENS),
            top_k=report.top_k,
            hidden=_CUT_HIDDEN,
            fault=request.fault,
            seed=seed,
        )
        with output.progress(f"executing experts cut by moe_tp = {cuts}"):
            cut_report = verify_tensor_parallel(job, runtime.Launch(processes, backend))
    if as_json:
        held = {} if cut_report is None else {"moe_tp": cut_report.summary()}
        output.json_object(
            report.summary() | {"routed_by": "random router" if trace is None else str(trace_path)} | held
        )
    else:
        router = "random router, give --trace for recorded choices" if trace_path is None else trace_path.name
        _print_report(report, plan_path.name, router)
        if cut_report is not None:
            _print_cuts(cut_report)
    if record is not None:
        write_trace(report.recorded(), record)
        output.note(f"wrote {record}")
    report.raise_on_failure()
    if cut_report is not None:
        cut_report.raise_on_failure()


def _print_cuts(report: "TensorParallelReport") -> None:
    output.table("ranks of the MindIE layout", ("rank", "EP rank", "experts", "part", "matmul"), report.holdings())
    output.table(
        "experts executed, error against whole experts",
        ("storage", "largest error"),
        [(name, f"{error:.1e}") for name, error in report.max_error.items()],
    )


def _read_trace(path: Path, num_experts: int | None) -> "RoutingTrace":
    import eplb_traces

    with output.progress(f"reading {path.name}"):
        return eplb_traces.read_trace(path, num_experts)


def _print_report(report: "VerifyReport", name: str, router: str) -> None:
    from eplb.runtime.verification.checks import MEANINGS

    output.facts(name, [("traffic", router), *report.facts()])
    legend = "\n".join(f"{check}: {meaning}" for check, meaning in MEANINGS.items())
    output.table("checks", ("check", "outcome"), list(report.check_outcomes().items()), legend=legend)
    output.table("rank load", ("layer", "busiest rank", "predicted", "measured", "mean"), report.load_rows())
    output.table(
        "bytes on the wire, dispatch and combine",
        ("exchange", "copies", "in node", "between", "busiest", "dropped"),
        [(mode, *numbers.values()) for mode, numbers in report.traffic().items()],
    )
    dropped = report.dropped_rows()
    if dropped:
        output.table("dropped selections", ("exchange", "layer", "expert", "dropped"), dropped)
