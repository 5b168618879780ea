"""Replanning while serving: record counts, decide, plan in the background, hand out migrations.

numpy alone: torch tensors are taken where there are some, Prometheus where `OnlineMetrics` is asked for.
"""

from eplb.online.counts import CountsOf
from eplb.online.decision import Decision, Observer, Outcome
from eplb.online.rebalancer import Rebalancer
from eplb.online.settings import OnlineSettings

__all__ = ["CountsOf", "Decision", "Observer", "OnlineSettings", "Outcome", "Rebalancer"]
