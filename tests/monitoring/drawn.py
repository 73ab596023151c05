"""The chart's dashboards as they are, and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.chart.panels import WIDTH
from tests.chart.rendering import CHART
from tests.monitoring.promql import problems as query_problems
from tests.monitoring.rules import alerts, recorded, rules

Object = dict[str, Any]

FOLDER = CHART / "files" / "dashboards"
_VALUES = {"__rate_interval": "1m", "namespace": ".*", "job": ".*"}
_VARIABLE = re.compile(r"\$(\w+)")


def dashboards() -> dict[str, Object]:
    """All of them, by the name of their file."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def queries(dashboard: Object) -> dict[str, str]:
    """What is asked, with everything chosen, by panel and number of the query."""
    found: dict[str, str] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = _VARIABLE.sub(lambda name: _VALUES.get(name[1], name[0]), target["expr"])
            found[f"{panel['id']} {panel['title']} {target['refId']}"] = query
    return found


def problems(dashboard: Object) -> Iterator[str]:
    """What is wrong with one."""
    yield from _lost(json.loads(json.dumps(dashboard)), _read(dashboard), "")
    panels = dashboard["panels"]
    twice = [number for number, times in Counter(panel["id"] for panel in panels).items() if times > 1]
    yield from (f"{number} is the id of two panels" for number in twice)
    for one, other in combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{one['title']} and {other['title']} lie over each other"
    for panel in panels:
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > WIDTH:
            yield f"{panel['title']} goes over the edge"
        yield from (f"{panel['title']}: {problem}" for problem in _links(panel))
    made = recorded(rules())
    for panel, query in queries(dashboard).items():
        if "$" in query:
            yield f"{panel}: {query} has a variable that is not there"
        yield from (f"{panel}: {problem}" for problem in query_problems(query, made))


def _read(dashboard: Object) -> Object:
    """What Grafana's own classes keep of it."""
    register_default_plugins()
    kept: Object = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return kept


def _lost(told: Any, kept: Any, where: str) -> Iterator[str]:
    if isinstance(told, dict) and isinstance(kept, dict):
        for key, value in told.items():
            if key not in kept:
                yield f"Grafana knows no {where}{key}"
            else:
                yield from _lost(value, kept[key], f"{where}{key}.")
    elif isinstance(told, list) and isinstance(kept, list) and len(told) == len(kept):
        for number, (one, other) in enumerate(zip(told, kept, strict=True)):
            yield from _lost(one, other, f"{where}{number}.")
    elif told != kept:
        yield f"Grafana takes {where.rstrip('.')} for {kept!r}, not {told!r}"


def _overlap(one: Object, other: Object) -> bool:
    apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (apart_x or apart_y)


def _links(panel: Object) -> Iterator[str]:
    addresses = {f"${{runbook}}#{alert.alert.lower()}" for alert in alerts()}
    for link in panel.get("links", []):
        if link["url"] not in addresses:
            yield f"{link['url']} is no section of the runbook"
