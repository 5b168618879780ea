"""Turns decisions into Prometheus metrics. The only file that imports prometheus_client (extra `metrics`)."""

from typing import TYPE_CHECKING, final

from eplb.errors import MissingExtraError
from eplb.online.decision import SKIPS, Decision, Outcome

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PLAN_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@final
class OnlineMetrics:
    """An observer that keeps Prometheus metrics.

    Parameters
    ----------
    registry
        Where the metrics are registered; one rebalancer a registry.

    Raises
    ------
    MissingExtraError
        Without prometheus_client.
    """

    def __init__(self, registry: "CollectorRegistry") -> None:
        try:
            from prometheus_client import Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtraError("Prometheus metrics", "metrics") from error
        self._balance = Gauge(
            "eplb_balance",
            "Balance of rank loads since the last check, by each engine's own definition.",
            ["definition"],
            registry=registry,
        )
        self._change = Gauge(
            "eplb_change",
            "Change of the load since the last plan; 1 is chance.",
            registry=registry,
        )
        self._checks = Counter("eplb_checks", "Checks of the load.", registry=registry)
        self._skipped = Counter("eplb_skipped", "Checks without a change.", ["reason"], registry=registry)
        self._migrations = Counter("eplb_migrations", "Migrations returned.", registry=registry)
        self._moved = Counter("eplb_moved_copies", "Replicas that ranks had to fetch.", registry=registry)
        self._bytes = Counter("eplb_moved_bytes", "Bytes of these replicas; 0 where unknown.", registry=registry)
        self._plan_s = Histogram(
            "eplb_plan_seconds", "Wall time of planning.", buckets=PLAN_BUCKETS_S, registry=registry
        )
        for reason in SKIPS:
            self._skipped.labels(reason.value)  # 0 for a reason that has not occurred, instead of no series

    def __call__(self, decision: Decision) -> None:
        """Update the metrics by one decision."""
        if decision.plan_s is None:
            self._checks.inc()
        else:
            self._plan_s.observe(decision.plan_s)
        if decision.measured is not None:
            for name, value in decision.measured.balance.items():
                self._balance.labels(name).set(value)
        if decision.change is not None:
            self._change.set(decision.change)
        if decision.outcome in SKIPS:
            self._skipped.labels(decision.outcome.value).inc()
        if decision.outcome is Outcome.MIGRATION and decision.migration is not None:
            self._migrations.inc()
            self._moved.inc(decision.migration.moved_copies)
            self._bytes.inc(decision.migration.moved_bytes or 0.0)
