"""`eplb verify`: executes a placement on real processes, or on virtual ranks, and checks what they did against it."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from eplb_cli import output
from eplb_cli.arguments import cost_options, options, verify_options
from eplb_cli.arguments.kind_of_file import expecting_placement
from eplb_cli.arguments.parse import check_at_least, refuse_typed
from eplb_cli.commands import verify_virtual
from eplb_cli.views.topology_rows import note_ignored_weights

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.formats.mindie_layout import ParallelLayout
    from eplb.runtime import VerifyReport, VerifyRequest
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
    processes: verify_options.ProcessesOpt = 2,
    backend: verify_options.BackendOpt = "gloo",
    mindie_config: verify_options.MindieConfigOpt = None,
    exchange: verify_options.ExchangeOpt = "all",
    dispatch: verify_options.DispatchOpt = "even",
    tokens_per_rank: verify_options.TokensPerRankOpt = None,
    trace_path: verify_options.TraceOpt = None,
    num_experts: options.NumExpertsOpt = None,
    layers: verify_options.LayersOpt = "",
    hidden: verify_options.HiddenOpt = 32,
    top_k: verify_options.TopKOpt = 0,
    buffer_scale_factors: verify_options.BufferScaleFactorsOpt = "[]",
    topk_scaling_factor: verify_options.TopkScalingFactorOpt = 1.0,
    overflow: verify_options.OverflowOpt = "raise",
    inject: verify_options.InjectOpt = "none",
    record: verify_options.RecordOpt = None,
    virtual: verify_options.VirtualOpt = False,
    device: cost_options.DeviceOpt = "cuda",
    load_path: verify_options.LoadOpt = None,
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
    _check_typed(context, exchange, layers, trace_path, record)
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
    cut_report = None if config is None else _verify_cuts(plan.placement, config.layout, request, report, processes)
    if as_json:
        held = {} if cut_report is None else {"moe_tp": cut_report.summary()}
        routed_by = "random router" if trace is None else str(trace_path)
        output.json_object(report.summary() | {"routed_by": routed_by} | held)
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


def _check_typed(
    context: typer.Context, exchange: str, layers: str, trace_path: Path | None, record: Path | None
) -> None:
    """Refuse options that have no effect together with the others.

    Raises
    ------
    typer.BadParameter
        Naming the option.
    """
    refuse_typed(context, verify_virtual.ONLY_VIRTUAL, "has no effect without --virtual")
    if trace_path is None:
        refuse_typed(context, ("--num-experts",), "has no effect without --trace")
    else:
        refuse_typed(context, ("--top-k",), "has no effect with --trace, whose tokens have their choices")
    if record is not None and layers not in ("", "all"):
        raise typer.BadParameter("--record needs all layers", param_hint="--layers")
    unlimited = {"allgather": "--buffer-scale-factors", "alltoall": "--topk-scaling-factor"}.get(exchange)
    if unlimited is not None:
        refuse_typed(context, (unlimited,), f"has no effect with --exchange {exchange}")


def _verify_cuts(
    placement: "Placement", layout: "ParallelLayout", request: "VerifyRequest", report: "VerifyReport", processes: int
) -> "TensorParallelReport":
    """Execute the first layer of `report` with experts cut by moe_tp, on all processes."""
    from eplb import runtime
    from eplb.runtime.verification.tensor_parallel import TensorParallelJob, verify_tensor_parallel

    job = TensorParallelJob(
        placement=placement,
        layout=layout,
        layer=report.layers[0].layer,
        rule=request.rule,
        exchange=request.exchange,
        tokens_per_rank=min(request.tokens_per_rank, _MOST_CUT_TOKENS),
        top_k=report.top_k,
        hidden=_CUT_HIDDEN,
        fault=request.fault,
        seed=request.seed,
    )
    with output.progress(f"executing experts cut by moe_tp = {layout.moe_tp}"):
        return verify_tensor_parallel(job, runtime.Launch(processes, request.launch.communicator))


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
