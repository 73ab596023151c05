"""What a pod tells Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backplane.keys import TIERS
from backplane.metrics import Registry
from backplane.named_metrics import NamedMetrics
from backplane.process_metrics import EventLoopLag, process_metrics
from backplane.settings import Settings
from gateway.delays import Delays
from gateway.open_connections import OTHER_CODE

if TYPE_CHECKING:
    from gateway.pod import Pod

_OUTCOMES = ("accepted", "repeated", "refused", "failed", "given_up")
_STATUSES = ("fresh", "replayed", "reset", "unknown")


def _code(code: int) -> str:
    return "other" if code == OTHER_CODE else str(code)


class PodMetrics:
    """A pod's instruments.

    Attributes:
        delays: of messages on their way to clients.
        opening: of a connection, from the token's check to the first message.
        resumes: by how it went.
    """

    def __init__(self, settings: Settings) -> None:
        self.registry = registry = Registry()
        self._accept = registry.histogram(
            "orchestrator_accept_seconds",
            "From a message's arrival to its action in the agents' queue: accepted to queued.",
            "tenant_tier",
        )
        self._sends = registry.counter(
            "orchestrator_sends_total",
            "Messages of clients: accepted, repeated (known already), refused (4xx), failed (5xx), or "
            "given_up (the client went, or the pod stopped, meanwhile). Tier unknown: it failed before "
            "that was known.",
            "tenant_tier",
            "outcome",
        )
        delivery = registry.histogram(
            "orchestrator_delivery_seconds",
            "From a message's making by the router, right before it is appended, to its write to the sockets "
            "of its session here, once for all: appended to written. Not to those that cannot take more, and "
            "without reports of progress, which may be held back.",
        ).of()
        acknowledgement = registry.histogram(
            "orchestrator_acknowledgement_seconds",
            "From a message's write to the first ack of its session that covers it, one message at a time: "
            "written to acknowledged.",
        ).of()
        self.delays = Delays(delivery, acknowledgement)
        self.opening = registry.histogram(
            "orchestrator_opening_seconds",
            "From a connection's admission to its first message, its log's read included.",
            "kind",
        )
        self.resumes = registry.counter(
            "orchestrator_resumes_total",
            "Connections by how their session went on: fresh (nothing to send), replayed, reset (the log no "
            "longer has what the client lacks), or unknown (also told as reset: the cursor is of no log "
            "that Redis knows, as the session has expired, or Redis has lost it).",
            "status",
        )
        self.http_requests = registry.counter(
            "orchestrator_http_requests_total",
            "HTTP requests that were answered; not upgrades to sockets.",
            "route",
            "method",
            "status",
        )
        self.http_duration = registry.histogram(
            "orchestrator_http_request_seconds",
            "Time until the answer's head is sent; of an event stream it is the time until it begins.",
            "route",
        )
        # From 0 on, or Prometheus would not see the first of each.
        for tier in TIERS:
            for outcome in _OUTCOMES:
                self._sends.of(tier, outcome)
        self._sends.of("unknown", "failed")
        for status in _STATUSES:
            self.resumes.of(status)
        self.named = NamedMetrics(registry, settings)
        self._sends_by_tenant = self.named.by_tenant(
            "orchestrator_tenant_sends_total", "Messages of clients", "outcome"
        )

    def accepted(self, tier: str, took_s: float, trace_id: str) -> None:
        """A message's action is in the queue.

        Args:
            trace_id: empty if that trace has no spans.
        """
        self._accept.of(tier).observe_traced(took_s, trace_id, time.time())

    def send_failed(self) -> None:
        """A message could not be taken, before it was known whose it is."""
        self._sends.of("unknown", "failed").value += 1

    def count_send(self, tenant_id: str, tier: str, outcome: str) -> None:
        """A client has sent a message."""
        self._sends.of(tier, outcome).value += 1
        self._sends_by_tenant.of(self.named.tenants.label(tenant_id), outcome).value += 1

    def watch(self, pod: Pod) -> EventLoopLag:
        """Read from the pod what it counts itself."""
        registry, sockets, hub = self.registry, pod.sockets, pod.hub
        registry.gauge(
            "orchestrator_connections",
            "Open connections: sockets and event streams.",
            lambda: {(kind,): float(n) for kind, n in sockets.open_by_kind.items()},
            "kind",
        )
        registry.gauge(
            "orchestrator_connections_limit",
            "Connections that the pod may hold.",
            lambda: float(pod.admission.most),
        )
        registry.counted(
            "orchestrator_connections_opened_total",
            "Connections that were let in.",
            lambda: float(sockets.opened),
        )
        registry.counted(
            "orchestrator_connections_closed_total",
            "Connections that ended, also such as were refused in a socket's words, by close code; 1006: cut "
            "off, other: one that only clients use. An event stream whose client goes counts as 1000.",
            lambda: {(_code(code),): float(n) for code, n in sockets.closed_by_code.items()},
            "code",
        )
        registry.counted(
            "orchestrator_refusals_total",
            "What clients were told they may not do, or not now, by error code.",
            lambda: {(code,): float(n) for code, n in pod.refused.items()},
            "error_code",
        )
        registry.gauge(
            "orchestrator_sessions", "Sessions with a connection here.", lambda: float(hub.sessions)
        )
        registry.counted(
            "orchestrator_messages_delivered_total",
            "Messages of logs that were written to connections: live, or read from the log (caught_up).",
            lambda: {("live",): float(hub.delivered), ("caught_up",): float(hub.caught_up)},
            "path",
        )
        registry.counted(
            "orchestrator_gaps_total",
            "Times that sockets lacked something that was published, and it was read from the log.",
            lambda: float(hub.gaps),
        )
        registry.counted(
            "orchestrator_restarts_total",
            "Sockets that had to come back, as the log had lost their place (told as reset when they do).",
            lambda: float(hub.restarts),
        )
        registry.counted(
            "orchestrator_streams_healed_total",
            "Streamed answers of which a piece was missed and read again.",
            lambda: float(hub.streams.healed),
        )
        registry.counted(
            "orchestrator_events_told_total",
            "Events and broadcasts that were written to connections.",
            lambda: float(pod.topics.told),
        )
        registry.gauge(
            "orchestrator_slow_consumers",
            "Connections that cannot take more now.",
            lambda: float(sockets.slow),
        )
        registry.counted(
            "orchestrator_slowed_total",
            "Times that a connection could not take more.",
            lambda: float(sockets.slowed),
        )
        registry.gauge(
            "orchestrator_send_buffer_bytes",
            "Bytes in this process that connections have not taken yet.",
            sockets.buffered_bytes,
        )
        registry.gauge(
            "orchestrator_draining",
            "1 while the pod is about to stop.",
            lambda: float(pod.health.draining),
        )
        stores = {"subscriptions": pod.feed, "commands": pod.commands}
        return process_metrics(registry, "gateway", pod.health.problem, stores, pod.health.probes, pod.tracer)
