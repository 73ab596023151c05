"""The chart's dashboards: Grafana knows all that is in them, and somebody tells what they ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.chart import generate
from tests.monitoring.drawn import FOLDER, dashboards, problems, queries

Object = dict[str, Any]
NAMES = ["overview.json", "router-redis.json", "tenants.json"]


def test_dashboards_are_generated() -> None:
    """The files are what the table says."""
    assert {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()} == generate.dashboards()
    assert list(dashboards()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_dashboard(name: str) -> None:
    """Its JSON is Grafana's, its panels have places of their own, its queries and links lead somewhere."""
    dashboard = dashboards()[name]
    assert list(problems(dashboard)) == []
    assert len(queries(dashboard)) > 12


def _panel(dashboard: Object) -> Object:
    found: Object = dashboard["panels"][3]
    return found


MISTAKES: dict[str, Callable[[Object], object]] = {
    "an unknown key": lambda told: told.update(tittle="x"),
    "an unknown key of a graph": lambda told: _panel(told)["fieldConfig"]["defaults"].update(units="s"),
    "an unknown key of a query": lambda told: _panel(told)["targets"][0].update(expression="up"),
    "two panels of one id": lambda told: _panel(told).update(id=told["panels"][1]["id"]),
    "two panels in one place": lambda told: _panel(told).update(gridPos=told["panels"][1]["gridPos"]),
    "beyond the edge": lambda told: told["panels"][1]["gridPos"].update(x=20, w=8, y=500),
    "a metric that nobody tells": lambda told: _panel(told)["targets"][0].update(
        expr="orchestrator_conections"
    ),
    "a label that a metric lacks": lambda told: _panel(told)["targets"][0].update(
        expr='orchestrator_ready{proces="x"}'
    ),
    "an unknown variable": lambda told: _panel(told)["targets"][0].update(expr='up{job=~"$jobs"}'),
    "a link to nothing": lambda told: _panel(told).update(links=[{"title": "x", "url": "${runbook}#old"}]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str) -> None:
    """Each of them, in a copy."""
    dashboard = json.loads(json.dumps(dashboards()["overview.json"]))
    MISTAKES[mistake](dashboard)
    assert list(problems(dashboard)) != []
