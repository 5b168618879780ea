"""Replans while an engine serves: records counts, decides, plans in the background, returns migrations.

Needs numpy only. Counts may be torch tensors; `OnlineMetrics` needs prometheus_client.
"""

from eplb.online.counts import CountsOf
from eplb.online.decision import Decision, Observer, Outcome
from eplb.online.rebalancer import Rebalancer
from eplb.online.settings import OnlineSettings

__all__ = ["CountsOf", "Decision", "Observer", "OnlineSettings", "Outcome", "Rebalancer"]
