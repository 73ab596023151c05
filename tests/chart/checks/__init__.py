"""What schemas cannot see: each check yields what is wrong with a rendered chart, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.chart.checks.network import network_policies, routes
from tests.chart.checks.objects import autoscalers, budgets, names, ports, selectors, spread
from tests.chart.checks.pod_security import restricted
from tests.chart.checks.processes import drain, hardening, helm_test, mounts, probes, secrets, settings
from tests.chart.checks.schemas import kubernetes_schemas
from tests.chart.rendering import Rendered

CHECKS: dict[str, Callable[[Rendered], Iterable[str]]] = {
    check.__name__: check
    for check in (
        autoscalers,
        budgets,
        drain,
        hardening,
        helm_test,
        kubernetes_schemas,
        mounts,
        names,
        network_policies,
        ports,
        probes,
        restricted,
        routes,
        secrets,
        selectors,
        settings,
        spread,
    )
}


def problems(rendered: Rendered) -> list[str]:
    """What any check finds."""
    return [f"{name}: {problem}" for name, check in CHECKS.items() for problem in check(rendered)]
