"""The chart's rules, as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendering import CHART
from tests.monitoring.promql import labels_of, parsed
from tests.monitoring.promql import problems as query_problems

RULES = CHART / "files" / "rules.yaml"
SEVERITIES = ("page", "ticket")
SECTION = re.compile(r"^### (Orchestrator\w+)$", re.MULTILINE)
_LABEL = re.compile(r"\$labels\.(\w+)")
_WINDOW = re.compile(r"\[(\w+)\]")
_WINDOW_OF = re.compile(r"([\w:]+?)(\d+[mhd])")
RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"


@dataclass(frozen=True, slots=True)
class Rule:
    """One of them.

    Attributes:
        record: name of the time series that it makes; empty if it is an alert.
        alert: name of the alert; empty if it makes a time series.
        wait: how long an alert's expression must hold (``for``), as Prometheus writes it.
    """

    expr: str
    record: str = ""
    alert: str = ""
    wait: str = "0s"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique among the rules."""
        return self.alert + self.record + "".join(f"-{value}" for value in self.labels.values())


def read(text: str) -> list[Rule]:
    """The rules of a file, in their order."""
    document: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    found = [rule for group in document["groups"] for rule in group["rules"]]
    return [
        Rule(**{("wait" if key == "for" else key): value for key, value in each.items()}) for each in found
    ]


def rules() -> list[Rule]:
    """Those of the chart."""
    return read(RULES.read_text("utf-8"))


def alerts() -> list[Rule]:
    """Those that tell somebody."""
    return [rule for rule in rules() if rule.alert]


def recorded(told: list[Rule]) -> dict[str, frozenset[str]]:
    """The labels of what recording rules make, by name."""
    made = [rule for rule in told if rule.record]
    return {rule.record: labels_of(parsed(rule.expr), {}) | rule.labels.keys() for rule in made}


def problems(told: list[Rule], runbook: str) -> Iterator[str]:
    """What is wrong with rules that Prometheus would take.

    Args:
        runbook: its text.
    """
    made = recorded(told)
    for rule in told:
        yield from (f"{rule.name}: {problem}" for problem in query_problems(rule.expr, made))
    for rule in told:
        if rule.alert:
            yield from (f"{rule.name}: {problem}" for problem in _untold(rule, made))
    names, sections = {rule.alert for rule in told if rule.alert}, set(SECTION.findall(runbook))
    yield from (f"{name} has no section in the runbook" for name in sorted(names - sections))
    yield from (
        f"the runbook has a section on {name}, of which there is none" for name in sorted(sections - names)
    )
    yield from _windows(told)


def _untold(rule: Rule, made: dict[str, frozenset[str]]) -> Iterator[str]:
    """What an alert says of itself that cannot be so."""
    if rule.labels.get("severity") not in SEVERITIES:
        yield f"its severity is none of {SEVERITIES}"
    if rule.annotations.keys() != {"summary", "description", "runbook_url"}:
        yield "it lacks an annotation, or has one too many"
    if rule.annotations.get("runbook_url") != f"docs/runbook.md#{rule.alert.lower()}":
        yield "its runbook_url is not its section"
    there = labels_of(parsed(rule.expr), made) | rule.labels.keys()
    for text in rule.annotations.values():
        yield from (f"it has no label {name}" for name in _LABEL.findall(text) if name not in there)


def _windows(told: list[Rule]) -> Iterator[str]:
    """Recording rules of one service level that differ in more than their windows."""
    shapes: dict[tuple[str, str], str] = {}
    for rule in told:
        if rule.record:
            name, window = _WINDOW_OF.fullmatch(rule.record).groups()  # type: ignore[union-attr]
            if set(_WINDOW.findall(rule.expr)) != {window}:
                yield f"{rule.name} has another window than its name"
            shape = _WINDOW.sub("[]", rule.expr)
            if shapes.setdefault((name, rule.labels["slo"]), shape) != shape:
                yield f"{rule.name} differs from the others in more than its window"
