"""Plans where the experts of a Mixture-of-Experts model live: plan, evaluate, write for an engine, verify.

A public name is imported on first access. Importing `eplb` loads no module but this one and what `lazy_names` needs.
"""

from typing import TYPE_CHECKING

from eplb_traces.lazy_names import lazy_names

if TYPE_CHECKING:
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.core.migration import Migration
    from eplb.core.placement import Placement
    from eplb.core.problem import GroupMode, LayerCertificate, Plan, SolveStatus
    from eplb.core.topology import Topology
    from eplb.core.topology_change import TopologyChange
    from eplb.engines.deepseek import rebalance_experts
    from eplb.engines.for_engine import for_engine
    from eplb.evaluation.metrics import Evaluation, evaluate
    from eplb.evaluation.step_cost import StepCost
    from eplb.formats.placement_files import check, convert, read_placement, write_placement
    from eplb.online.rebalancer import Rebalancer
    from eplb.online.settings import OnlineSettings
    from eplb.online.simulation import simulate
    from eplb.planning.advice import DeploymentSpace, advise
    from eplb.planning.diff import diff
    from eplb.planning.engine_target import EngineTarget
    from eplb.planning.planner import compare, plan
    from eplb.planning.rebalance import Horizon, rebalance
    from eplb.planning.redundancy_sweep import sweep
    from eplb.planning.replan_on import replan_on
    from eplb.planning.strategy_backtest import backtest
    from eplb.report.write_report import write_report
    from eplb.version import __version__ as __version__
    from eplb_traces.expert_load import ExpertLoad
    from eplb_traces.model_shape import ModelShape
    from eplb_traces.readers import read_load, read_trace
    from eplb_traces.routing_trace import RoutingTrace

__all__ = [
    "DeploymentSpace",
    "DispatchRule",
    "EngineTarget",
    "Evaluation",
    "ExpertLoad",
    "GroupMode",
    "Horizon",
    "LayerCertificate",
    "Migration",
    "ModelShape",
    "OnlineSettings",
    "Placement",
    "Plan",
    "Rebalancer",
    "RoutingTrace",
    "SolveStatus",
    "StepCost",
    "Topology",
    "TopologyChange",
    "advise",
    "backtest",
    "check",
    "compare",
    "convert",
    "datasets",
    "diff",
    "evaluate",
    "for_engine",
    "plan",
    "read_load",
    "read_placement",
    "read_trace",
    "rebalance",
    "rebalance_experts",
    "replan_on",
    "simulate",
    "sweep",
    "write_placement",
    "write_report",
]

# Public name -> the module that defines it, as in the imports above, which type checkers read; `datasets` is a module.
_HOME_OF = {
    "DeploymentSpace": "eplb.planning.advice",
    "DispatchRule": "eplb.core.dispatch_rule",
    "EngineTarget": "eplb.planning.engine_target",
    "Evaluation": "eplb.evaluation.metrics",
    "ExpertLoad": "eplb_traces.expert_load",
    "GroupMode": "eplb.core.problem",
    "Horizon": "eplb.planning.rebalance",
    "LayerCertificate": "eplb.core.problem",
    "Migration": "eplb.core.migration",
    "ModelShape": "eplb_traces.model_shape",
    "OnlineSettings": "eplb.online.settings",
    "Placement": "eplb.core.placement",
    "Plan": "eplb.core.problem",
    "Rebalancer": "eplb.online.rebalancer",
    "RoutingTrace": "eplb_traces.routing_trace",
    "SolveStatus": "eplb.core.problem",
    "StepCost": "eplb.evaluation.step_cost",
    "Topology": "eplb.core.topology",
    "TopologyChange": "eplb.core.topology_change",
    "__version__": "eplb.version",
    "advise": "eplb.planning.advice",
    "backtest": "eplb.planning.strategy_backtest",
    "check": "eplb.formats.placement_files",
    "compare": "eplb.planning.planner",
    "convert": "eplb.formats.placement_files",
    "diff": "eplb.planning.diff",
    "evaluate": "eplb.evaluation.metrics",
    "for_engine": "eplb.engines.for_engine",
    "plan": "eplb.planning.planner",
    "read_load": "eplb_traces.readers",
    "read_placement": "eplb.formats.placement_files",
    "read_trace": "eplb_traces.readers",
    "rebalance": "eplb.planning.rebalance",
    "rebalance_experts": "eplb.engines.deepseek",
    "replan_on": "eplb.planning.replan_on",
    "simulate": "eplb.online.simulation",
    "sweep": "eplb.planning.redundancy_sweep",
    "write_placement": "eplb.formats.placement_files",
    "write_report": "eplb.report.write_report",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME_OF, __all__)
