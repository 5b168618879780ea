"""`eplb verify --virtual`: executes every rank's experts on one device and prints the seconds beside the prediction."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import typer

from eplb_cli import output
from eplb_cli.arguments.parse import check_at_least, refuse_typed

if TYPE_CHECKING:
    from eplb.core.placement import Placement
    from eplb.cost import Batch, ModelSizes
    from eplb.runtime.virtual.virtual_verify import VirtualReport, VirtualRequest

ONLY_VIRTUAL = ("--device", "--load", "--model", "--phase", "--calibration", "--dtype")
_ONLY_PROCESSES = (
    *("--processes", "--backend", "--mindie-config", "--exchange", "--hidden-size", "--top-k"),
    *("--buffer-scale-factors", "--topk-scaling-factor", "--overflow", "--inject", "--record"),
)
_HEADINGS = ("layer", "straggler", "makespan ms", "mean ms", "predicted ms", "error %")


@final
@dataclass(frozen=True, kw_only=True)
class Virtual:
    """What the user typed for `--virtual`.

    Parameters
    ----------
    device, dtype, dispatch, seed
        As in `VirtualRequest`; the seed draws the batch from a load.
    model, calibration
        Names or files; empty if not given.
    trace, num_experts, load
        Where the tokens come from: exactly one of trace and load.
    phase, tokens_per_rank
        How many tokens a rank has: exactly one of them, an empty phase if not given.
    layers
        As `--layers` has it.
    """

    device: str
    dtype: str
    dispatch: str
    seed: int
    model: str
    calibration: str
    trace: Path | None
    num_experts: int | None
    load: Path | None
    phase: str
    tokens_per_rank: int | None
    layers: str


def check_typed(context: typer.Context, asked: Virtual) -> None:
    """Refuse options without effect, and ask for those that are missing.

    Raises
    ------
    typer.BadParameter
        Naming the option.
    """
    refuse_typed(context, _ONLY_PROCESSES, "has no effect with --virtual")
    for option, value in (("--model", asked.model), ("--calibration", asked.calibration)):
        if not value:
            raise typer.BadParameter("needed with --virtual", param_hint=option)
    if asked.trace is not None and asked.load is not None:
        raise typer.BadParameter("expected one of both with --virtual", param_hint="--trace, --load")
    if (not asked.phase) == (asked.tokens_per_rank is None):
        raise typer.BadParameter("expected one of both with --virtual", param_hint="--phase, --tokens-per-rank")
    check_at_least(1, {"--tokens-per-rank": asked.tokens_per_rank})
    if asked.trace is not None:
        refuse_typed(context, ("--seed",), "has no effect with --trace, whose first tokens are taken")
    else:
        refuse_typed(context, ("--num-experts",), "has no effect with --load")


def verify_on_virtual_ranks(placement: "Placement", asked: Virtual, name: str, *, as_json: bool) -> None:
    """Execute a plan's share of every rank, one rank after the other, and print what each layer took."""
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.cost import model_sizes, named_calibration
    from eplb.runtime.verification.verify_request import chosen_layers, read_layers
    from eplb.runtime.virtual.virtual_verify import VirtualRequest, verify_virtual

    request = VirtualRequest(
        model=model_sizes(asked.model),
        calibration=named_calibration(asked.calibration),
        dtype=asked.dtype,
        device=asked.device,
        rule=DispatchRule.named(asked.dispatch),
        layers=chosen_layers(placement.num_layers, read_layers(asked.layers, placement.num_layers)),
    )
    batch = _batch(placement, request.model, asked)
    with output.progress(f"executing {placement.topology.num_ranks} ranks on {asked.device}"):
        report = verify_virtual(placement, batch, request)
    if as_json:
        output.json_object(_about(placement, batch, request) | report.summary())
    else:
        _print(report, _about(placement, batch, request), name)


def _batch(placement: "Placement", model: "ModelSizes", asked: Virtual) -> "Batch":
    """The tokens of the step, of the same model as the plan."""
    import eplb_traces
    from eplb.cost import Batch, Phase
    from eplb.errors import InputError

    if model.num_experts != placement.num_experts:
        raise InputError(f"model {model.name} has {model.num_experts} experts: the plan has {placement.num_experts}")
    tokens = Phase.named(asked.phase).tokens_per_rank if asked.tokens_per_rank is None else asked.tokens_per_rank
    if asked.trace is None:
        return _sampled(placement, model, asked, tokens)
    with output.progress(f"reading {asked.trace.name}"):
        trace = eplb_traces.read_trace(asked.trace, asked.num_experts)
        placement.check_model(trace.shape, "trace", name="plan")
        if trace.shape.top_k not in (None, model.top_k):
            raise InputError(f"the trace is top-{trace.shape.top_k}: model {model.name} is top-{model.top_k}")
        return Batch.of_trace(trace, num_ranks=placement.topology.num_ranks, tokens_per_rank=tokens)


def _sampled(placement: "Placement", model: "ModelSizes", asked: Virtual, tokens_per_rank: int) -> "Batch":
    import eplb_traces
    from eplb.cost import Batch

    if asked.load is None:
        raise typer.BadParameter("expected one of both with --virtual", param_hint="--trace, --load")
    load = eplb_traces.read_load(asked.load)
    placement.check_model(load.shape, name="plan")
    return Batch.sampled(
        load.total,
        num_ranks=placement.topology.num_ranks,
        tokens_per_rank=tokens_per_rank,
        top_k=model.top_k,
        seed=asked.seed,
    )


def _about(placement: "Placement", batch: "Batch", request: "VirtualRequest") -> dict[str, object]:
    return {
        "num_ranks": placement.topology.num_ranks,
        "num_slots": placement.num_slots,
        "model": request.model.name,
        "dtype": request.dtype,
        "device": request.device,
        "dispatch": request.rule.value,
        "tokens_per_rank": batch.tokens_per_rank,
        "calibration": request.calibration.title,
    }


def _print(report: "VirtualReport", about: dict[str, object], name: str) -> None:
    output.facts(name, [(key.replace("_", " "), str(value)) for key, value in about.items()])
    output.table(
        "expert FFN of a layer; error: of the prediction",
        _HEADINGS,
        [
            (layer, rank, *(f"{each:.4g}" for each in (makespan, mean, predicted)), f"{error:.1f}")
            for layer, rank, makespan, mean, predicted, error in report.rows()
        ],
    )
