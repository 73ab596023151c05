"""Mistakes in rules and runbook, each of which a test must find."""

from __future__ import annotations

from typing import NamedTuple

from tests.monitoring.rules import RULES, RUNBOOK


class Break(NamedTuple):
    """A mistake.

    Attributes:
        old: what is there, at least once.
        new: what is written in all places instead.
        found_by: alerts whose cases find it; none: it is found by looking.
    """

    what: str
    old: str
    new: str
    found_by: tuple[str, ...] = ()
    runbook: bool = False

    def made(self) -> tuple[str, str]:
        """The text of rules and runbook with it.

        Raises:
            LookupError: it does not fit any more.
        """
        texts = [RULES.read_text("utf-8"), RUNBOOK.read_text("utf-8")]
        if self.old not in texts[self.runbook]:
            raise LookupError(self.old)
        texts[self.runbook] = texts[self.runbook].replace(self.old, self.new)
        return texts[0], texts[1]


_NOT_DRAINING = "\n          unless ignoring (process) orchestrator_draining == 1"

SEEN = [
    Break(
        "a metric that nobody tells",
        "orchestrator_callbacks_oldest_age_seconds",
        "orchestrator_callbacks_age_seconds",
    ),
    Break(
        "a histogram without its suffix",
        "orchestrator_delivery_seconds_count",
        "orchestrator_delivery_seconds",
    ),
    Break("a label that a metric lacks", '{result="dead_letters"}', '{outcome="dead_letters"}'),
    Break(
        "grouped by a label that is not there",
        "max by (namespace, job, tenant_tier)",
        "max by (namespace, job, tier)",
    ),
    Break("matched by a label that is not there", "unless ignoring (process)", "unless ignoring (kind)"),
    Break(
        "a recorded series of another name",
        "orchestrator:slo_errors:increase6h{",
        "orchestrator:slo_errors:sum6h{",
    ),
    Break(
        "a label in an annotation that is not there",
        "of tier {{ $labels.tenant_tier }}",
        "of tier {{ $labels.tier }}",
    ),
    Break("one that was aggregated away", "had pods within", "({{ $labels.instance }}) had pods within"),
    Break("an unknown severity", "{severity: ticket}", "{severity: warning}"),
    Break(
        "another section's address",
        "docs/runbook.md#orchestratorpoddeaf",
        "docs/runbook.md#orchestratornorouter",
    ),
    Break("a window that is not the name's", 'outcome="failed"}[2h]', 'outcome="failed"}[3h]'),
    Break("a level that is worked out otherwise in one window", 'le="0.5"}[6h]', 'le="0.25"}[6h]'),
    Break("an alert of another name", "alert: OrchestratorPodDeaf", "alert: OrchestratorDeafPod"),
    Break("a section that is not there", "### OrchestratorRedisSlow\n", "", runbook=True),
    Break(
        "a section of nothing",
        "### OrchestratorRedisSlow\n",
        "### OrchestratorRedisSlow\n\n### OrchestratorOld\n",
        runbook=True,
    ),
]
"""Found by looking at the rules."""

TRIED = [
    Break("few errors are enough", 'increase1h{slo="accepting"} >= 10', 'increase1h{slo="accepting"} >= 0', ("OrchestratorAcceptingBudget",)),
    Break("refusals are errors", 'outcome="failed"}', 'outcome=~"failed|refused"}', ("OrchestratorAcceptingBudget",)),
    Break("the short window is not looked at", '\n          and orchestrator:slo_errors:ratio_rate5m{slo="accepting"} > 14.4 * 0.001', "", ("OrchestratorAcceptingBudget",)),
    Break("another bucket is slow", 'le="0.5"', 'le="2.5"', ("OrchestratorDeliveryBudget",)),
    Break("fresh sessions are not resumed", 'status=~"replayed|reset"', 'status="reset"', ("OrchestratorResumeBudget",)),
    Break("an alert that does not wait", "        for: 1m\n", "", ("OrchestratorNoRouter", "OrchestratorCallbacksWaiting")),
    Break("installations are one", "unless on (namespace, job) (sum by (namespace, job)", "unless on () (sum by ()", ("OrchestratorNoRouter",)),
    Break("a pod may not drain", _NOT_DRAINING, "", ("OrchestratorPodNotReady", "OrchestratorPodDeaf")),
    Break("a drain is a storm", "\n          unless on (namespace, job) max_over_time(orchestrator_draining[10m]) == 1", "",
          ("OrchestratorReconnectStorm", "rolling update")),
    Break("who drains is counted", " unless ignoring (process) orchestrator_draining == 1)", ")", ("OrchestratorPodsNotReady",)),
    Break("the first router to tell is the last", "max_over_time(orchestrator_dead_letters_kept[1m])", "orchestrator_dead_letters_kept",
          ("OrchestratorDeadLetters",)),
    Break("a connection that is mended hides it", 'max_over_time(orchestrator_redis_up{connection="subscriptions"}[1m])',
          'orchestrator_redis_up{connection="subscriptions"}', ("OrchestratorPodDeaf",)),
    Break("a few dead letters are a surge", "[10m])) >= 20", "[10m])) >= 0", ("OrchestratorDeadLetterSurge",)),
    Break("cancelled tasks have failed", "failed|timeout", "failed|timeout|cancelled", ("OrchestratorAgentsFailing",)),
    Break("each program is ours", "\n          and on (namespace, job, instance) orchestrator_build_info", "", ("OrchestratorFilesNearLimit",)),
    Break("each target is ours", "\n          and on (namespace, job) group by (namespace, job) (last_over_time(orchestrator_build_info[1h]))", "",
          ("OrchestratorTargetDown",)),
    Break("one pod's Redis is everybody's", "avg by (namespace, job) (max_over_time(", "min by (namespace, job) (max_over_time(",
          ("OrchestratorRedisAway",)),
    Break("only all of them count", "histogram_quantile(0.99", "histogram_quantile(0.999", ("OrchestratorEventLoopLag", "OrchestratorRedisSlow")),
]  # fmt: skip
"""Found by trying them on cases."""
