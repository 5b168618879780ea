"""Figures of a report: each function draws into matplotlib Axes and returns them."""

from eplb.report.pictures.advice import draw_advice
from eplb.report.pictures.balance_and_token_spread import draw_balance_and_token_spread
from eplb.report.pictures.balance_by_part import draw_balance_by_part
from eplb.report.pictures.balance_over_windows import draw_balance_over_windows
from eplb.report.pictures.coactivation import Measure, Order, draw_coactivation
from eplb.report.pictures.coactivation_overview import draw_coactivation_overview
from eplb.report.pictures.expert_load import draw_expert_load
from eplb.report.pictures.hottest_experts import draw_hottest_experts
from eplb.report.pictures.layer_balance import draw_layer_balance
from eplb.report.pictures.load_by_part import draw_load_by_part
from eplb.report.pictures.migration import draw_migration
from eplb.report.pictures.rank_load import draw_rank_load
from eplb.report.pictures.redundancy import draw_redundancy
from eplb.report.pictures.replica_counts import draw_replica_counts
from eplb.report.pictures.step_time import draw_step_times
from eplb.report.pictures.traffic import draw_traffic
from eplb.report.pictures.traffic_front import draw_traffic_front

__all__ = [
    "Measure",
    "Order",
    "draw_advice",
    "draw_balance_and_token_spread",
    "draw_balance_by_part",
    "draw_balance_over_windows",
    "draw_coactivation",
    "draw_coactivation_overview",
    "draw_expert_load",
    "draw_hottest_experts",
    "draw_layer_balance",
    "draw_load_by_part",
    "draw_migration",
    "draw_rank_load",
    "draw_redundancy",
    "draw_replica_counts",
    "draw_step_times",
    "draw_traffic",
    "draw_traffic_front",
]
