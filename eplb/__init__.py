"""Where the experts of a Mixture-of-Experts model live: plan it, judge it, write it for an engine, prove it.

Importing this package loads neither torch nor a solver nor a plotting library, and the online rebalancer when asked.
"""

from typing import TYPE_CHECKING

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, LayerCertificate, Plan, SolveStatus
from eplb.core.topology import Topology
from eplb.engines.deepseek import rebalance_experts
from eplb.engines.for_engine import for_engine
from eplb.evaluation.metrics import Evaluation, evaluate
from eplb.formats.placement_files import read_placement, write_placement
from eplb.planning.planner import compare, plan
from eplb.planning.rebalance import Horizon, rebalance
from eplb.version import eplb_version
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, read_load, read_trace

if TYPE_CHECKING:
    from eplb.online import OnlineSettings, Rebalancer

__version__: str

__all__ = [
    "DispatchRule",
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
    "Topology",
    "compare",
    "evaluate",
    "for_engine",
    "plan",
    "read_load",
    "read_placement",
    "read_trace",
    "rebalance",
    "rebalance_experts",
    "write_placement",
]


def __getattr__(name: str) -> object:
    """Look up when somebody asks, not at import, what would make it slower."""
    if name == "__version__":
        return eplb_version()
    if name in ("OnlineSettings", "Rebalancer"):
        from eplb import online

        return getattr(online, name)
    raise AttributeError(f"module 'eplb' has no attribute {name!r}")
