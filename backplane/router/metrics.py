"""What a router tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from backplane.keys import TIERS
from backplane.metrics import SLOW_S, Registry
from backplane.named_metrics import NamedMetrics
from backplane.process_metrics import EventLoopLag, process_metrics
from backplane.router.dispatch import REASONS
from backplane.settings import Settings
from backplane.trace_context import sample_bound, sampled_trace_id
from backplane.tracing import NO_TRACER, Tracer

if TYPE_CHECKING:
    from backplane.router.consumer import Consumer

_RESULTS = (
    "appended",
    "streamed",
    "duplicates",
    "late",
    "collapsed",
    "pieces_ignored",
    "sent_on",
    "dead_letters",
)
_COUNTS = (
    ("gauge", "orchestrator_callbacks_oldest_age_seconds",
     "For how long a callback has been waiting on one of this router's lists; 0 if none is.", "oldest_s"),
    ("gauge", "orchestrator_callbacks_waiting",
     "Callbacks that wait on this router's lists, as far as it knows.", "waiting"),
    ("gauge", "orchestrator_callback_lists_waiting",
     "Lists of this router's on which something waits.", "lists_waiting"),
    ("gauge", "orchestrator_callback_lists", "Lists that this router serves.", "lists_served"),
    ("gauge", "orchestrator_routers", "Routers that have a lease, in this router's eyes.", "routers"),
    ("gauge", "orchestrator_lookout", "1 for the router that finds new lists.", "is_lookout"),
    ("counter", "orchestrator_transfers_total",
     "Batches of callbacks that were moved.", "transfer.counts.batches"),
    ("counter", "orchestrator_transfer_conflicts_total",
     "Batches that another router had moved meanwhile: leases that overlap.", "transfer.counts.conflicts"),
    ("counter", "orchestrator_dead_letters_dropped_total",
     "Dead letters that went for newer ones (DEAD_LETTERS_MAX).", "transfer.counts.dead_letters_dropped"),
    ("counter", "orchestrator_publishes_refused_total",
     "Messages in the log that Redis would not publish: pods find them by themselves.",
     "transfer.counts.publishes_refused"),
    ("counter", "orchestrator_sends_forgotten_total",
     "Sends whose pod died before their action was pushed; nobody was told that they were accepted.",
     "deadlines.forgotten"),
    ("counter", "orchestrator_task_end_failures_total",
     "Times that a task could not be ended, or go on, though Redis was there; it is tried again.",
     "deadlines.failures"),
    ("counter", "orchestrator_tasks_released_total",
     "Messages that had waited for other tasks of their session, and went on.", "deadlines.released"),
)  # fmt: skip


class RouterMetrics:
    """A router's instruments.

    Args:
        tracer: gets the spans of what is measured; without one no trace can be looked up.

    Attributes:
        wait: from a callback's push to its entry in the log.
        transfer: of a batch.
        lateness: of timeouts.
    """

    def __init__(self, settings: Settings, tracer: Tracer = NO_TRACER) -> None:
        self._actions_max = settings.actions_queue_max
        self._tracer = tracer
        self._sampled = sample_bound(settings.trace_sample_ratio)
        self.registry = registry = Registry()
        self.wait = registry.histogram(
            "orchestrator_callback_wait_seconds",
            "From the moment in which a list was written to until its oldest callback was appended to its "
            "session's log, once a batch: callback pushed to appended.",
        ).of()  # fmt: skip
        self.transfer = registry.histogram(
            "orchestrator_transfer_seconds", "Time of moving one batch of callbacks, Redis included."
        ).of()
        self._first_word = registry.histogram(
            "orchestrator_task_first_word_seconds",
            "From a message's acceptance to the first that its agent said: a token, a report or the answer.",
            "tenant_tier", bounds=SLOW_S,
        )  # fmt: skip
        self._duration = registry.histogram(
            "orchestrator_task_duration_seconds",
            "From a message's acceptance to the end that its agent gave it, in its session's log.",
            "tenant_tier", "outcome", bounds=SLOW_S,
        )  # fmt: skip
        self.lateness = registry.histogram(
            "orchestrator_task_end_lateness_seconds",
            "From a deadline without an answer to the timeout that ends its task; DEADLINE_GRACE_S is in it.",
            bounds=SLOW_S,
        ).of()  # fmt: skip
        self._dead = registry.counter(
            "orchestrator_dead_letters_total", "Callbacks that became dead letters, by reason.", "reason"
        )
        for reason in REASONS:  # from 0 on, or Prometheus would not see the first of each
            self._dead.of(reason)
        self.named = NamedMetrics(registry, settings)
        self._callbacks = self.named.by_tenant(
            "orchestrator_tenant_callbacks_total", "Callbacks taken from lists"
        )

    def count_callbacks(self, tenant_id: str, callbacks: int) -> None:
        """A batch of a tenant's callbacks was taken."""
        self._callbacks.of(self.named.tenants.label(tenant_id)).value += callbacks

    def count_dead(self, reasons: Iterable[str]) -> None:
        """Callbacks became dead letters."""
        for reason in reasons:
            self._dead.of(reason).value += 1

    def note(self, tenant_id: str, told: list[bytes]) -> None:
        """What the transfer script has seen of tasks (see `_task.lua`)."""
        for line in told:
            what, ms, said, agent_id, trace = line.decode("utf-8", "replace").split(" ", 4)
            tier = said if said in TIERS else "unknown"
            after_s = int(ms) / 1000
            histogram = self._first_word.of(tier) if what == "started" else self._duration.of(tier, what)
            trace_id = sampled_trace_id(trace, self._sampled) if self._tracer.on else ""
            if trace_id:
                histogram.observe_traced(after_s, trace_id, time.time())
            else:
                histogram.observe(after_s)
            if what != "started":
                self.named.task_ended(tenant_id, tier, agent_id, what)

    def watch(self, consumer: Consumer) -> EventLoopLag:
        """Read from the consumer what it counts itself."""
        registry, depths = self.registry, consumer.depths
        registry.counted(
            "orchestrator_callbacks_total",
            "What became of callbacks: appended to a log, streamed, duplicates, late (after their task's "
            "end), collapsed (a newer report of the same step took their place), pieces_ignored (of an "
            "answer, known or without use), sent_on (to the list of their session), dead_letters.",
            lambda: {(name,): float(getattr(consumer.transfer.counts, name)) for name in _RESULTS}, "result",
        )  # fmt: skip
        for kind, name, meaning, attribute in _COUNTS:
            enter = registry.gauge if kind == "gauge" else registry.counted
            enter(name, meaning, partial(_read, consumer, attribute))
        registry.gauge(
            "orchestrator_actions_waiting",
            "Actions that no agent has taken yet, told by one of the routers.",
            lambda: {(tier,): float(n) for tier, n in depths.actions.items()}, "tenant_tier",
        )  # fmt: skip
        registry.gauge(
            "orchestrator_actions_limit",
            "Actions of a tier that may wait (ACTIONS_QUEUE_MAX); beyond, sends are answered 503.",
            lambda: float(self._actions_max),
        )
        registry.gauge(
            "orchestrator_actions_oldest_age_seconds",
            "For how long the next action has been waiting for an agent, told by one of the routers.",
            lambda: {(tier,): age_s for tier, age_s in depths.actions_oldest_s.items()}, "tenant_tier",
        )  # fmt: skip
        registry.gauge(
            "orchestrator_dead_letters_kept",
            "Dead letters that wait to be seen to, told by one of the routers.",
            lambda: {} if depths.dead_letters is None else float(depths.dead_letters),
        )  # fmt: skip
        stores = {"transfers": consumer.store, "commands": consumer.commands}
        return process_metrics(registry, "router", consumer.problem, stores, consumer.probes, self._tracer)


def _read(consumer: Consumer, attribute: str) -> float:
    return float(attrgetter(attribute)(consumer))
