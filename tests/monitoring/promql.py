"""What queries ask for: metrics and labels that are named in PromQL, held against those that there are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache

import promql_parser as parser

from backplane.metrics import Registry
from gateway.metrics_reference import registries

TARGET = frozenset({"namespace", "job", "pod", "instance"})
"""Labels that Prometheus gives to whatever it scrapes; `job` and `instance` alone outside Kubernetes."""

FOREIGN: dict[str, frozenset[str]] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    "process_cpu_seconds_total": frozenset(),
    "process_max_fds": frozenset(),
    "process_open_fds": frozenset(),
    "process_resident_memory_bytes": frozenset(),
    "process_start_time_seconds": frozenset(),
}
"""Metrics that others tell (Prometheus itself, prometheus-client), and their labels."""

Expr = parser.Expr


@cache
def known() -> dict[str, frozenset[str]]:
    """The labels of every time series that pods and routers tell, by its name, beside those of the target."""
    told: dict[str, frozenset[str]] = dict(FOREIGN)
    for registry in asyncio.run(_registries()).values():
        for family in registry.families.values():
            about, labels = family.about, frozenset(family.about.labels)
            if about.kind == "histogram":
                told[f"{about.name}_bucket"] = labels | {"le"}
                told[f"{about.name}_count"] = told[f"{about.name}_sum"] = labels
            else:
                told[about.name] = labels
    return told


async def _registries() -> dict[str, Registry]:
    return await registries()


def parsed(query: str) -> Expr:
    """A query as a tree.

    Raises:
        ValueError: it is no PromQL.
    """
    return parser.parse(query)


def within(expr: Expr) -> Iterator[Expr]:
    """An expression and all that it consists of."""
    found: list[Expr] = []
    parser.walk(expr, pre_visit=found.append)
    return iter(found)


def selectors(query: str) -> list[parser.VectorSelector]:
    """Every time series that a query reads."""
    return [each for each in within(parsed(query)) if isinstance(each, parser.VectorSelector)]


def sides(query: str) -> list[str]:
    """What a query compares, but for constants: it has data also where the comparison leaves nothing."""
    return [side for side in _sides(parsed(query)) if selectors(side)]


def _sides(expr: Expr) -> Iterator[str]:
    if isinstance(expr, parser.ParenExpr):
        yield from _sides(expr.expr)
    elif isinstance(expr, parser.BinaryExpr) and _keeps_left(expr):
        yield from _sides(expr.lhs)
        yield from _sides(expr.rhs)
    else:
        yield str(expr.prettify())


def problems(query: str, recorded: dict[str, frozenset[str]]) -> Iterator[str]:
    """What a query asks for and nobody tells.

    Args:
        recorded: labels of time series that recording rules make, by name.
    """
    told = known() | recorded
    for each in within(parsed(query)):
        if isinstance(each, parser.VectorSelector):
            yield from _unknown(each, told)
        elif isinstance(each, parser.AggregateExpr) and each.modifier is not None:
            below = labels_of(each.expr, recorded)
            yield from (
                f"nothing below has the label {name}" for name in each.modifier.labels if name not in below
            )
        elif isinstance(each, parser.BinaryExpr) and each.modifier is not None and each.modifier.matching:
            matched = each.modifier.matching.labels
            both = labels_of(each.lhs, recorded) | labels_of(each.rhs, recorded)
            yield from (f"neither side has the label {name}" for name in matched if name not in both)


def _unknown(selector: parser.VectorSelector, told: dict[str, frozenset[str]]) -> Iterator[str]:
    labels = told.get(selector.name or "")
    if labels is None:
        yield f"nobody tells {selector.name}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in labels | TARGET:
            yield f"{selector.name} has no label {matcher.name}"


def labels_of(expr: Expr, recorded: dict[str, frozenset[str]]) -> frozenset[str]:
    """The labels that an expression's results can have."""
    if isinstance(expr, parser.VectorSelector):
        return TARGET | (known() | recorded).get(expr.name or "", frozenset())
    if isinstance(expr, parser.AggregateExpr):
        return _aggregated(expr, recorded)
    if isinstance(expr, parser.BinaryExpr):
        left, right = labels_of(expr.lhs, recorded), labels_of(expr.rhs, recorded)
        return left | right if str(expr.op) == "or" else left or right
    if isinstance(expr, parser.Call):
        spent = {"le"} if expr.func.name == "histogram_quantile" else set()
        return frozenset().union(*(labels_of(argument, recorded) for argument in expr.args)) - spent
    inner = expr.vector_selector if isinstance(expr, parser.MatrixSelector) else getattr(expr, "expr", None)
    return frozenset() if inner is None else labels_of(inner, recorded)


def _aggregated(expr: parser.AggregateExpr, recorded: dict[str, frozenset[str]]) -> frozenset[str]:
    if expr.modifier is None:
        return frozenset()
    named = frozenset(expr.modifier.labels)
    by = expr.modifier.type == parser.AggModifierType.By
    return named if by else labels_of(expr.expr, recorded) - named


def _keeps_left(expr: parser.BinaryExpr) -> bool:
    """Whether it filters what stands on its left, or joins two filters."""
    return str(expr.op) in {"and", "or", "unless", "<", ">", "<=", ">=", "==", "!="}
