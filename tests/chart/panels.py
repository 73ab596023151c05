"""Grafana's dashboards out of a few words for each panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Object = dict[str, Any]

SCHEMA_VERSION = 41
"""Of Grafana 11.6; newer ones bring dashboards up to date when they load them."""

WIDTH = 24
_SOURCE: Object = {"type": "prometheus", "uid": "${datasource}"}
_PLACE = 'namespace=~"$namespace",job=~"$job"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph, or a number.

    Attributes:
        queries: PromQL by legend; ``@`` stands for the labels that the variables choose.
        unit: in Grafana's words.
        alerts: whose sections of the runbook it links to.
        limits: values from which on it is yellow and red.
        low: whether it is what is below that is bad.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    about: str = ""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    height: int = 7
    stacked: bool = False
    alerts: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    low: bool = False

    def drawn(self, number: int, x: int, y: int) -> Object:
        """As Grafana reads it."""
        told: Object = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                self._target(chr(ord("A") + n), *query) for n, query in enumerate(self.queries.items())
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind],
        }
        if self.about:
            told["description"] = self.about
        if self.alerts:
            told["links"] = [
                {"title": f"Runbook: {alert}", "url": f"${{runbook}}#{alert.lower()}", "targetBlank": True}
                for alert in self.alerts
            ]
        return told

    def _target(self, name: str, legend: str, query: str) -> Object:
        target = {
            "refId": name,
            "datasource": _SOURCE,
            "expr": query.replace("@", _PLACE),
            "legendFormat": legend,
        }
        if self.kind == "timeseries":
            return target | {"range": True, "instant": False}
        return target | {
            "range": False,
            "instant": True,
            "format": "table" if self.kind == "table" else "time_series",
        }

    def _defaults(self) -> Object:
        told: Object = {"unit": self.unit, "min": 0}
        if self.limits is not None:
            colors = ("red", "yellow", "green") if self.low else ("green", "yellow", "red")
            values = (None, *self.limits)
            steps = [{"color": color, "value": value} for color, value in zip(colors, values, strict=True)]
            told["thresholds"] = {"mode": "absolute", "steps": steps}
        if self.kind == "timeseries":
            told["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 8,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none"},
                "thresholdsStyle": {"mode": "off" if self.limits is None else "line"},
            }
        return told


_OPTIONS: dict[str, Object] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
}


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, from left to right, as many lines as they need."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One of them.

    Attributes:
        name: of its file, and in its address.
    """

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    tags: tuple[str, ...] = field(default=("orchestrator",))

    def drawn(self) -> Object:
        """As Grafana reads it."""
        return {
            "uid": f"orchestrator-{self.name}",
            "title": self.title,
            "description": self.about,
            "tags": list(self.tags),
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "timezone": "browser",
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_datasource(), *_places(), _runbook()]},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Agent Orchestrator",
                    "tags": list(self.tags),
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                    "targetBlank": False,
                    "icon": "external link",
                    "tooltip": "",
                    "url": "",
                },
                {
                    "type": "link",
                    "title": "Runbook",
                    "url": "${runbook}",
                    "tags": [],
                    "asDropdown": False,
                    "includeVars": False,
                    "keepTime": False,
                    "targetBlank": True,
                    "icon": "doc",
                    "tooltip": "What to do, alert by alert",
                },
            ],
            "annotations": {"list": []},
            "panels": list(self._panels()),
        }

    def _panels(self) -> Iterator[Object]:
        number = y = 0
        for row in self.rows:
            number += 1
            place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            yield {
                "id": number,
                "type": "row",
                "title": row.title,
                "gridPos": place,
                "collapsed": False,
                "panels": [],
            }
            x, y, tallest = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                number += 1
                yield panel.drawn(number, x, y)
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest


def _datasource() -> Object:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }


def _places() -> Iterator[Object]:
    """Without a label `namespace` there is nothing to choose, and All finds what has none.

    All jobs are those of this project: `process_*` and `up` are told by others too.
    """
    for name, where in (("namespace", ""), ("job", '{namespace=~"$namespace"}')):
        query = f"label_values(orchestrator_build_info{where}, {name})"
        told: Object = {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "hide": 0,
        }
        if name == "namespace":
            told["allValue"] = ".*"
        yield told


def _runbook() -> Object:
    address = "docs/runbook.md"
    return {
        "name": "runbook",
        "label": "Runbook's address",
        "description": "Where you keep docs/runbook.md of the project.",
        "type": "textbox",
        "query": address,
        "current": {"selected": True, "text": address, "value": address},
        "hide": 0,
    }
