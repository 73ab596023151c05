"""A real Prometheus beside two pods and a router: queries have data, and rehearsed failures their alerts."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.monitoring.drawn import dashboards, queries
from tests.monitoring.promql import sides
from tests.monitoring.promtool import promtool
from tests.monitoring.rules import rules
from tests.support.prometheus import hurried
from tests.support.rehearsal import TIMES, Stage, stage, table

NOTHING = {
    "orchestrator_memory_limit_bytes": "these processes have none, unless the tests run in a container",
    "orchestrator_task_end_lateness_seconds_bucket{": "no task times out, so there are no times to draw",
    "ALERTS{": "nothing fires",
}
"""What is in queries that yield nothing here, and why."""

DEPENDS = {"orchestrator_memory_limit_bytes", "ALERTS{"}
"""Of these, what may have something to tell on another, or a busier, machine."""

BUSY = {"OrchestratorDeliveryBudget", "OrchestratorEventLoopLag", "OrchestratorRedisSlow"}
"""Alerts that are right on a machine that has too much to do."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Everything, with answers coming."""
    with stage(tmp_path_factory.mktemp("rehearsal")) as everything:
        yield everything


def _empty(stage: Stage, asked: dict[str, str]) -> list[str]:
    """Sides of comparisons in queries that yield nothing."""
    return [
        f"{name}: {side}"
        for name, query in asked.items()
        for side in sides(query)
        if not stage.prometheus.values(side)
    ]


@pytest.mark.timeout(300)
def test_rehearsal(running: Stage) -> None:
    """All at once, as it takes a while to start: first what works has data, then what breaks is told."""
    asked = {rule.name: hurried(rule.expr, TIMES) for rule in rules()}
    asked |= {
        f"{name} {panel}": query
        for name, dashboard in dashboards().items()
        for panel, query in queries(dashboard).items()
    }
    empty = _empty(running, asked)
    assert running.prometheus.firing().keys() <= BUSY
    assert [each for each in empty if not any(known in each for known in NOTHING)] == []
    needless = {known for known in NOTHING if not any(known in each for each in empty)}
    assert needless <= DEPENDS
    assert [
        name for name, told in running.prometheus.firing().items() if told["labels"]["severity"] == "page"
    ] == []
    rehearsed = list(running.rehearse())
    print("", *table(rehearsed, TIMES), sep="\n")
    assert len(rehearsed) == 4
    assert all("error" not in each.says and each.says for each in rehearsed)


def test_metrics_are_as_prometheus_wants_them(running: Stage) -> None:
    """`promtool check metrics`, lint included, takes what pods and router tell; and finds a mistake in it."""
    for url in running.urls:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            told: bytes = answer.read()
        assert promtool("check", "metrics", told=told) == (0, "")
        assert promtool("check", "metrics", told=told.replace(b"_total counter", b"_total gauge"))[0] != 0


def test_openmetrics_is_understood(running: Stage) -> None:
    """Prometheus asks for OpenMetrics and gets it, from pods and router alike; nothing of it is refused."""
    for url in running.urls:
        asked = urllib.request.Request(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            text: str = answer.read().decode()
        assert text.endswith("# EOF\n")
        assert len(list(text_string_to_metric_families(text))) > 30  # type: ignore[no-untyped-call]
    assert min(running.prometheus.values("scrape_samples_post_metric_relabeling")) > 100
