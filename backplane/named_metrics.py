"""What is counted for tenants and agents: for those that have most traffic, and those that the settings name.

A label for each of thousands of tenants would cost a Prometheus more than all else that it is told.
"""

from __future__ import annotations

import time

from backplane.keys import TIERS
from backplane.metrics import Counter, Family, Registry
from backplane.settings import Settings
from backplane.task import ENDED
from backplane.top_names import TopNames

_REST = "those with most traffic and those that {} names; the rest is `other`"


class NamedMetrics:
    """Counters by tenant and by agent, and how tasks end, which pods and routers tell alike.

    Attributes:
        tenants: which have a label of their own.
        agents: likewise.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self.tenants = TopNames(
            _names(settings.metrics_tenants), settings.metrics_top_tenants, time.monotonic
        )
        self.agents = TopNames(_names(settings.metrics_agents), settings.metrics_top_agents, time.monotonic)
        registry.before += [self.tenants.elect, self.agents.elect]
        registry.counted(
            "orchestrator_metrics_folded_total",
            "What was counted under `other`, as its tenant or agent has no label of its own.",
            lambda: {("tenant_id",): float(self.tenants.folded), ("agent_id",): float(self.agents.folded)},
            "label",
        )
        self._ended = registry.counter(
            "orchestrator_tasks_ended_total",
            "Tasks that have ended: completed, failed, timeout or cancelled; told by who ended them.",
            "tenant_tier",
            "outcome",
        )
        for tier in TIERS:  # from 0 on, or Prometheus would not see the first of each
            for outcome in sorted(ENDED):
                self._ended.of(tier, outcome)
        self._ended_by_tenant = self.by_tenant(
            "orchestrator_tenant_tasks_ended_total", "Tasks that have ended", "outcome"
        )
        self._ended_by_agent = registry.counter(
            "orchestrator_agent_tasks_ended_total",
            f"Tasks that have ended, by agent: {_REST.format('METRICS_AGENTS')}.",
            "agent_id",
            "outcome",
        )
        self.agents.on_out.append(self._ended_by_agent.forget)

    def by_tenant(self, name: str, what: str, *labels: str) -> Family[Counter]:
        """A family of counters whose first label is `tenants`'."""
        meaning = f"{what}, by tenant: {_REST.format('METRICS_TENANTS')}."
        family = self._registry.counter(name, meaning, "tenant_id", *labels)
        self.tenants.on_out.append(family.forget)
        return family

    def task_ended(self, tenant_id: str, tier: str, agent_id: str, outcome: str) -> None:
        """A task has ended."""
        self._ended.of(tier if tier in TIERS else "unknown", outcome).value += 1
        self._ended_by_tenant.of(self.tenants.label(tenant_id), outcome).value += 1
        self._ended_by_agent.of(self.agents.label(agent_id), outcome).value += 1


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]
