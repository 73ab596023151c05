"""What alerts on service levels, callbacks and agents fire at, and stay quiet at."""

from __future__ import annotations

from tests.monitoring.case import BOTH, FREE, HERE, PAGE, PODS, ROUTERS, TICKET, Case, each
from tests.monitoring.worlds import Series, growing, steady

SENDS, RESUMES = "orchestrator_sends_total", "orchestrator_resumes_total"
DELIVERED, ENDED = "orchestrator_delivery_seconds", "orchestrator_tasks_ended_total"
LATE = "orchestrator_task_end_lateness_seconds"
LONG = 8 * 60  # of samples: windows of days are worked out from what there is


def _failing(step: float) -> Series:
    return each(SENDS, PODS, growing(step), outcome="failed", **FREE)


def _budgets() -> list[Case]:
    few = {HERE.series(SENDS, pod, outcome="accepted", **FREE): steady(1) for pod in PODS}
    half_slow = each(f"{DELIVERED}_bucket", PODS, growing(30), le="0.5")
    return [
        Case("OrchestratorAcceptingBudget", "one send of sixteen fails", _failing(2), PAGE),
        Case("OrchestratorAcceptingBudget", "one of 2,000 fails", _failing(0.015)),
        Case("OrchestratorAcceptingBudget", "one of two fails, and there were no more",
             few | {HERE.series(SENDS, "pod-0", outcome="failed", **FREE): "0x20 1+0x900",
                    HERE.series(SENDS, "pod-0", outcome="accepted", **FREE): "0x20 1+0x900"}, at=9),
        Case("OrchestratorAcceptingBudget", "it is over, and has cost what may fail in a day",
             each(SENDS, PODS, "0+5x40 200+0x900", outcome="failed", **FREE), TICKET, at=45),
        Case("OrchestratorAcceptingBudget", "clients go, and are refused",
             each(SENDS, PODS, growing(30), outcome="given_up", **FREE)
             | each(SENDS, PODS, growing(30), outcome="refused", **FREE)),
        Case("OrchestratorAcceptingBudget", "four in a thousand, for a day", _failing(0.13), TICKET, step="5m", at=LONG),
        Case("OrchestratorAcceptingBudget", "one in 2,000, for a day", _failing(0.015), step="5m", at=LONG),
        Case("OrchestratorDeliveryBudget", "half of all is slow", half_slow, PAGE),
        Case("OrchestratorDeliveryBudget", "one in 200 is slow",
             each(f"{DELIVERED}_bucket", PODS, growing(59.7), le="0.5")),
        Case("OrchestratorDeliveryBudget", "four in a hundred are slow, for a day",
             each(f"{DELIVERED}_bucket", PODS, growing(57.6), le="0.5"), TICKET, step="5m", at=LONG),
        Case("OrchestratorResumeBudget", "one in seven is reset",
             each(RESUMES, PODS, growing(0.5), status="reset"), PAGE),
        Case("OrchestratorResumeBudget", "one in 2,000 is reset",
             each(RESUMES, PODS, growing(600), status="replayed") | each(RESUMES, PODS, growing(0.3), status="reset")),
        Case("OrchestratorResumeBudget", "all are fresh", each(RESUMES, PODS, growing(90), status="fresh")),
        Case("OrchestratorResumeBudget", "four in a thousand, for a day",
             each(RESUMES, PODS, growing(0.13), status="reset")
             | each(RESUMES, PODS, growing(30), status="replayed"), TICKET, step="5m", at=LONG),
        Case("OrchestratorTaskEndBudget", "one of sixty ends late",
             each(f"{LATE}_bucket", ROUTERS, steady(0), le="10.0"), PAGE),
        Case("OrchestratorTaskEndBudget", "all timeouts are in time",
             each(f"{LATE}_bucket", ROUTERS, growing(2), le="10.0")
             | each(f"{LATE}_count", ROUTERS, growing(2))),
        Case("OrchestratorTaskEndBudget", "four in a thousand, for a day",
             each(f"{LATE}_bucket", ROUTERS, growing(0.76), le="10.0"), TICKET, step="5m", at=LONG),
    ]  # fmt: skip


def _callbacks() -> list[Case]:
    age, kept = "orchestrator_callbacks_oldest_age_seconds", "orchestrator_dead_letters_kept"
    results = "orchestrator_callbacks_total"
    dead = {"result": "dead_letters"}
    return [
        Case("OrchestratorCallbacksWaiting", "for a quarter of a minute and longer",
             each(age, ROUTERS, growing(15)), PAGE, at=3),
        Case("OrchestratorCallbacksWaiting", "for eight seconds", each(age, ROUTERS, steady(8))),
        Case("OrchestratorCallbacksWaiting", "once, for a minute",
             each(age, ROUTERS, "0+0x40 15 30 45 60 0+0x900"), at=11),
        Case("OrchestratorDeadLetters", "there is one", each(kept, ROUTERS, steady(1)), TICKET),
        Case("OrchestratorDeadLetters", "another router tells it in between",
             each(kept, ROUTERS, "1+0x30 stale _x900") | {HERE.series(kept, "router-1"): "_x33 1+0x900"}, TICKET, at=10),
        Case("OrchestratorDeadLetters", "it was dropped", each(kept, ROUTERS, "1+0x12 0+0x900"), at=6),
        Case("OrchestratorDeadLetterSurge", "half of all", each(results, ROUTERS, growing(60), **dead), PAGE),
        Case("OrchestratorDeadLetterSurge", "one in a hundred", each(results, ROUTERS, growing(0.6), **dead)),
        Case("OrchestratorDeadLetterSurge", "three of four",
             each(results, ROUTERS, "0x20 3x900", **dead) | each(results, ROUTERS, "0x20 1x900", result="appended"), at=12),
        Case("OrchestratorDeadLettersLost", "some",
             each("orchestrator_dead_letters_dropped_total", ROUTERS, "0+0x40 7+0x900"), TICKET),
        Case("OrchestratorDeadLettersLost", "some, before the router was started",
             each("orchestrator_dead_letters_dropped_total", ROUTERS, steady(7))),
        Case("OrchestratorTaskNotEnded", "some",
             each("orchestrator_task_end_failures_total", ROUTERS, "0+0x40 2+0x900"), TICKET),
        Case("OrchestratorTaskNotEnded", "twenty minutes ago",
             each("orchestrator_task_end_failures_total", ROUTERS, "0+0x40 2+0x900"), at=30),
    ]  # fmt: skip


def _agents() -> list[Case]:
    waiting, age = "orchestrator_actions_waiting", "orchestrator_actions_oldest_age_seconds"
    many, some = growing(59), growing(10)
    return [
        Case("OrchestratorActionsWaiting", "longer and longer", each(age, ROUTERS, growing(15), **FREE), PAGE, at=5),
        Case("OrchestratorActionsWaiting", "for twenty seconds", each(age, ROUTERS, steady(20), **FREE)),
        Case("OrchestratorActionsBacklog", "60,000", each(waiting, ROUTERS, steady(60_000), **FREE), TICKET),
        Case("OrchestratorActionsBacklog", "40,000", each(waiting, ROUTERS, steady(40_000), **FREE)),
        Case("OrchestratorAgentsFailing", "half of all tasks", each(ENDED, PODS, many, outcome="failed", **FREE), BOTH, at=22),
        Case("OrchestratorAgentsFailing", "a quarter of them", each(ENDED, PODS, some, outcome="failed", **FREE), TICKET, at=22),
        Case("OrchestratorAgentsFailing", "as many are cancelled", each(ENDED, PODS, many, outcome="cancelled", **FREE), at=22),
        Case("OrchestratorAgentsFailing", "both of two",
             each(ENDED, ROUTERS, steady(0), outcome="completed", **FREE)
             | each(ENDED, ROUTERS, "0x20 2x900", outcome="timeout", **FREE), at=15),
    ]  # fmt: skip


TRAFFIC = [*_budgets(), *_callbacks(), *_agents()]
