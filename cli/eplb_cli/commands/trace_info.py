"""`eplb trace info`: shows what a trace or load holds, layer by layer."""

from dataclasses import asdict, dataclass
from math import isnan
from typing import TYPE_CHECKING, Annotated, final

import typer

from eplb_cli import output
from eplb_cli.arguments import files
from eplb_cli.arguments.options import CsvOpt, JsonOpt, TracesArg
from eplb_cli.arguments.parse import id_list
from eplb_cli.arguments.reading import Reading, reads_loads

if TYPE_CHECKING:
    from eplb.evaluation.metrics import Evaluation
    from eplb_traces import ExpertLoad, RoutingTrace
    from eplb_traces.coactivation.layer_coactivation import PairShare
    from eplb_traces.statistics import Drift

_EP_SIZES = (8, 16, 32, 64)
_NUM_BLOCKS = 32  # of neighbouring experts, each drawn as one character
_WIDTH = 80  # columns that a line with so many blocks needs
_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # in quarters of the mean

RanksOpt = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        "-r",
        metavar="R,R",
        help="Numbers of ranks to show: 3,6.",
        show_default="8,16,32,64 where they divide the experts",
    ),
]


@final
@dataclass(frozen=True)
class _Layer:
    """One line of the view by layer; None where the file does not hold it."""

    layer: int
    load_profile: list[float] | None
    max_over_mean: dict[int, float | None]
    drift: float | None
    drift_by_chance: float | None
    pairs_inside_group: float | None
    pairs_inside_group_by_chance: float | None
    group_affinity: float | None


@reads_loads
def info(
    paths: TracesArg, ranks: RanksOpt = None, *, reading: Reading, as_csv: CsvOpt = False, as_json: JsonOpt = False
) -> None:
    """Show what FILE holds and how uneven it is with experts in order and without redundancy.

    Then a line for each layer: the load over the experts, busiest over mean rank, how far the load of a window lies
    from the whole (drift), and how much more often than by chance a token's experts are of one expert group.
    """
    from eplb_traces.statistics import drift

    sizes = _EP_SIZES if ranks is None else id_list(ranks, "--ranks")
    read = files.read_source(paths, reading)
    source = read.content
    with output.progress("counting"):
        load = read.load()
        evaluations = _linear(load, sizes)
        drifted, pairs = drift(load), _pairs_inside_group(source)
    num_blocks = min(load.num_experts, _NUM_BLOCKS if as_json or output.width() >= _WIDTH else _NUM_BLOCKS // 2)
    layers = _layers(load, num_blocks, evaluations, drifted, pairs)
    if as_csv:
        output.csv_rows([asdict(of) for of in layers])
        return
    fields = ({"read_as": list(read.read_as)} if read.read_as else {}) | _fields(source, load)
    imbalance = [_imbalance(ranks, of) for ranks, of in evaluations.items()]
    if as_json:
        by_layer = {"drift_windows": drifted.num_windows, "by_layer": [asdict(of) for of in layers]}
        output.json_object({**fields, "linear_max_over_mean": imbalance, **by_layer})
        return
    output.facts(files.listed(paths), [(name.replace("_", " "), _shown(value)) for name, value in fields.items()])
    rows = [(of["num_ranks"], of["mean"], of["worst"]) for of in imbalance]
    output.table("Busiest over mean rank, experts in order", ("ranks", "mean of layers", "worst layer"), rows)
    _show(layers, sizes)
    _explain(load, num_blocks, drifted, pairs, sizes)


def _linear(load: "ExpertLoad", sizes: tuple[int, ...]) -> "dict[int, Evaluation]":
    """Evaluations of experts in order, for numbers of ranks and for one expert a rank.

    The usual numbers are left out where the experts do not divide by them; those that were asked for are refused.
    """
    import eplb
    from eplb.core.baseline import experts_in_order
    from eplb.errors import InputError

    found = {}
    for ranks in (*(size for size in sizes if size != load.num_experts), load.num_experts):
        if ranks and load.num_experts % ranks == 0:
            topology = eplb.Topology.for_experts(load.num_experts, num_ranks=ranks)
            found[ranks] = eplb.evaluate(experts_in_order(load.num_layers, load.num_experts, topology), load)
        elif sizes is not _EP_SIZES:
            raise InputError(f"ranks = {ranks}: expected a divisor of {load.num_experts} experts")
    return found


def _imbalance(num_ranks: int, evaluation: "Evaluation") -> dict[str, float | int]:
    summary = evaluation.summary()
    return {"num_ranks": num_ranks, "mean": summary["max_over_mean_mean"], "worst": summary["max_over_mean_worst"]}


def _layers(
    load: "ExpertLoad",
    num_blocks: int,
    evaluations: "dict[int, Evaluation]",
    drifted: "Drift",
    pairs: "list[PairShare]",
) -> list[_Layer]:
    from eplb_traces.statistics import load_profile

    profile = load_profile(load, num_blocks).tolist()
    has_drift = drifted.num_windows > 1
    return [
        _Layer(
            layer,
            None if isnan(profile[layer][0]) else profile[layer],
            {ranks: _known(of.max_over_mean[layer]) for ranks, of in evaluations.items()},
            _known(drifted.distance[layer]) if has_drift else None,
            _known(drifted.by_chance[layer]) if has_drift else None,
            _known(pairs[layer].observed) if pairs else None,
            _known(pairs[layer].expected) if pairs else None,
            _known(pairs[layer].ratio) if pairs else None,
        )
        for layer in range(load.num_layers)
    ]


def _pairs_inside_group(source: "ExpertLoad | RoutingTrace") -> "list[PairShare]":
    """A share for each layer; none where there are no pairs or no groups."""
    import eplb_traces
    from eplb_traces.statistics import group_affinity

    if not isinstance(source, eplb_traces.RoutingTrace) or source.shape.num_expert_groups == 1:
        return []
    return group_affinity(source)


def _show(layers: list[_Layer], shown: tuple[int, ...]) -> None:
    """Print a line for each layer, with the balance on `shown` ranks; columns without a value are left out."""
    bars = _bars()
    sizes = [ranks for ranks in layers[0].max_over_mean if ranks in shown]
    has_drift = any(of.drift is not None for of in layers)
    has_pairs = any(of.group_affinity is not None for of in layers)
    headings = ["layer", "load", *(f"EP{ranks}" for ranks in sizes), *["drift"] * has_drift, *["group"] * has_pairs]
    rows: list[tuple[output.Cell, ...]] = []
    for of in layers:
        ratios = [None if of.load_profile is None else of.max_over_mean[ranks] for ranks in sizes]
        optional = [*[_decimals(of.drift, 3)] * has_drift, *[_decimals(of.group_affinity, 2)] * has_pairs]
        drawn = _drawn(of.load_profile or [], bars)
        rows.append((of.layer, drawn, *(_decimals(ratio, 2) for ratio in ratios), *optional))
    output.table("Load by layer, experts in order", headings, rows)


def _explain(
    load: "ExpertLoad", num_blocks: int, drifted: "Drift", pairs: "list[PairShare]", sizes: tuple[int, ...]
) -> None:
    """Print what the columns mean, and their means over layers."""
    from eplb_traces.statistics import mean_share

    bars = _bars()
    fewest, uneven = divmod(load.num_experts, num_blocks)
    size = f"{fewest} or {fewest + 1} experts" if uneven else output.counted(fewest, "expert")
    output.line(f"load   a character is {size}; {bars[4]} the layer's mean, {bars[8]} twice the mean or more")
    if any(load.num_experts % ranks == 0 for ranks in sizes):
        output.line("EPn    busiest over mean of n ranks")
    if not isnan(drifted.mean) and drifted.num_windows > 1:
        output.line(f"drift  total variation between the load of {drifted.num_windows} windows and the whole, 0 to 1;")
        output.line(f"       {drifted.mean:.3f} on average, {drifted.mean_by_chance:.3f} if by chance")
    mean = mean_share(pairs)
    if not isnan(mean.ratio):
        output.line("group  pairs of a token's experts inside an expert group, over what chance gives;")
        output.line(f"       {mean.observed:.3f} of all pairs on average, {mean.expected:.3f} if by chance")


def _bars() -> str:
    return _BARS if output.can_print(_BARS) else _ASCII_BARS


def _drawn(profile: list[float], bars: str) -> str:
    """One character a block: the middle one is the mean, the last one twice the mean or more."""
    return "".join(bars[min(8, max(1, round(4 * height))) if height > 0 else 0] for height in profile)


def _decimals(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _fields(source: "ExpertLoad | RoutingTrace", load: "ExpertLoad") -> dict[str, object]:
    import eplb_traces

    is_trace = isinstance(source, eplb_traces.RoutingTrace)
    shape = load.shape
    return {
        "kind": "token-level trace" if is_trace else "load",
        "layers": shape.num_layers,
        "experts": shape.num_experts,
        "top_k": shape.top_k,
        "expert_groups": shape.num_expert_groups,
        "moe_layer_ids": None if shape.moe_layer_ids is None else list(shape.moe_layer_ids),
        "hidden_layers": shape.num_hidden_layers,
        "tokens": source.num_tokens if isinstance(source, eplb_traces.RoutingTrace) else None,
        "windows": load.num_windows,
        "expert_choices": float(load.tokens.sum()),
    }


def _shown(value: object) -> str:
    """A field for people: unknown values by name, ids as ranges, whole numbers without a point."""
    from eplb_traces.model_shape import id_ranges

    if value is None:
        return "not recorded"
    if isinstance(value, list):
        return "; ".join(value) if isinstance(value[0], str) else id_ranges(value)
    return f"{value:.0f}" if isinstance(value, float) else str(value)
