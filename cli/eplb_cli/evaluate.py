"""`eplb evaluate`: what a placement does to a load, whoever made it."""

from eplb_cli import inputs, output
from eplb_cli.metric_rows import metric_facts, window_objects, window_table
from eplb_cli.options import HintNodesOpt, HintRanksOpt, JsonOpt, LoadArg, NumExpertsOpt, PlanArg, PlanFormatOpt


def evaluate(  # noqa: PLR0913  # one parameter a word of the command line
    plan_path: PlanArg,
    load_path: LoadArg,
    format: PlanFormatOpt = None,
    ranks: HintRanksOpt = None,
    nodes: HintNodesOpt = None,
    num_experts: NumExpertsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Judge the placement in PLAN by the traffic in LOAD, which need not be the traffic it was made for."""
    import eplb
    from eplb.formats import ReadHints

    load = inputs.read_load(load_path, num_experts)
    plan = inputs.read_plan_for(load, plan_path, format, ReadHints(num_ranks=ranks, num_nodes=nodes))
    with output.progress("evaluating"):
        evaluation = eplb.evaluate(plan.placement, load)
    if as_json:
        windows = window_objects(evaluation)
        output.json_object({"strategy": plan.strategy, **evaluation.summary(), "windows": windows})
        return
    output.facts(f"{plan_path.name} ({plan.strategy}) under {load_path.name}", metric_facts(evaluation.summary()))
    window_table(evaluation)
