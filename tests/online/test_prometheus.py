"""Prometheus metrics of the online rebalancer: what a scrape would show is what happened."""

import sys

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import MissingExtraError
from eplb.evaluation.metrics import evaluate
from eplb.online import OnlineSettings, Rebalancer
from eplb.online.prometheus import OnlineMetrics
from eplb_traces import ExpertLoad

LIVE = Placement([np.arange(20) % 16] * 2, 16, Topology(1, 4, 5))


def test_a_scrape_shows_what_happened():
    prometheus_client = pytest.importorskip("prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    rng, rate = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(16), 2)
    steps = [np.stack([rng.multinomial(9000, row) for row in rate]) for _ in range(12)]
    migrations = []
    settings = OnlineSettings(interval=4, target=1.0, expert_bytes=100.0)
    with Rebalancer(LIVE, settings, observer=OnlineMetrics(registry)) as rebalancer:
        for counts in steps:
            rebalancer.record(counts)
            migration = rebalancer.step(wait=True)
            if migration is not None:
                migrations.append(migration)
                rebalancer.commit(migration)
    moved = sum(migration.moved_copies for migration in migrations)
    assert moved > 0
    value = registry.get_sample_value
    assert value("eplb_checks_total") == 3
    assert value("eplb_migrations_total") == len(migrations)
    assert value("eplb_moved_copies_total") == moved
    assert value("eplb_moved_bytes_total") == 100 * moved
    assert value("eplb_plan_seconds_count") == len(migrations)
    assert value("eplb_skipped_total", {"reason": "no_change"}) == 3 - len(migrations)
    assert value("eplb_skipped_total", {"reason": "cooldown"}) == 0
    last = evaluate(rebalancer.placement, ExpertLoad(np.stack(steps[-4:])))
    for name, expected in last.summary().items():
        if name in last.balance:
            assert value("eplb_balance", {"definition": name}) == pytest.approx(expected), name
    assert b"eplb_balance" in prometheus_client.generate_latest(registry)


def test_without_the_extra_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match="extra 'metrics'"):
        OnlineMetrics(None)
