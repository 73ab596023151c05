"""What load balancers and those who run the service may ask."""

from __future__ import annotations

from functools import partial
from typing import Any

from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.openapi.clients import DONE, Operations
from gateway.openapi.operation import Answer, Body, Operation
from gateway.openapi.refusals import BODY, FIELD, ID, LIFTING, NO_ROOM, OPERATOR, QUERY, REDIS, WHICH

_CONNECTIONS = "/api/admin/connections"
_REVOCATIONS = "/api/admin/revocations"
_LOG_LEVEL = "/api/admin/log-level"
_LIMITS = "/api/admin/tenants/{tenant_id}/limits"

_POD = {
    "pod_id": "pod-7f3a", "address": "0.0.0.0:8080", "connections": 3, "sessions": 2, "ready": True,
    "opened": 9, "closed": {"1000": 5, "1012": 1}, "delivered": 40, "gaps": 0, "events_told": 2,
    "streams_healed": 0, "sends_accepted": 12, "sends_repeated": 1, "tasks_cancelled": 0,
    "refused": {"token_expired": 2},
}  # fmt: skip
_ROUTER = {"router_id": "router-1c2d", "lists": 4, "oldest_s": 0.0, "ready": True, "reason": None}
_DETAILED = {
    "status": "ok", "service": "agent_orchestrator", "ready": True, "reason": None,
    "redis": {"address": "redis:6379/0", "connected": True, "probe_round_trip_ms": 0.6},
    "routers": 2, "pod": _POD,
}  # fmt: skip
_CLUSTER = {"connections": 3, "pods": [_POD], "answered_by": "pod-7f3a"}
_TENANT = {
    "tenant_id": "acme", "connections": 2, "pods": [{"pod_id": "pod-7f3a", "connections": 2}],
    "answered_by": "pod-7f3a",
}  # fmt: skip
_CONNECTION = {
    "pod_id": "pod-7f3a", "connection_id": "2f4e6a", "tenant_id": "acme", "tenant_tier": "free",
    "session_id": "s-1", "user_id": "ann", "since": 1769860800,
}  # fmt: skip
_REVOKED = {
    "kind": "user", "tenant_id": "acme", "name": "ann", "issued_before": 1769860800.0, "until": 1801396800,
}  # fmt: skip
_LEVEL = {
    "pod_id": "pod-7f3a", "level": "debug", "configured": "info", "left_s": 60.0, "lines_dropped": 0,
    "suppressed": 0,
}  # fmt: skip
_OWN_LIMITS = {"sends_per_minute": 500, "sends_per_day": 0, "connections": 20_000}

_health = partial(Operation, tag="health", harmless=True)
_stats = partial(Operation, tag="operators", scopes=("stats",))
_admin = partial(Operation, tag="administration", scopes=("admin",))


def operators(settings: Settings) -> Operations:
    """The operations, by method and path."""
    return {
        **_healths(),
        **_watched(settings),
        **_log_level(),
        **_connections(),
        **_revocations(),
        **_limits(),
    }


def _healths() -> Operations:
    service = {"status": "ok", "service": "agent_orchestrator"}
    draining = {"status": "not_ready", "reason": "draining"}
    headers = ("ETag", "Cache-Control")
    health = _health(
        name="health",
        summary="The process runs",
        answers={200: Answer("It does.", ("Alive",), {"ok": service})},
    )
    live = _health(
        name="live",
        summary="The process runs, whatever Redis does",
        answers={200: Answer("It does.", ("Alive",), {"ok": {"status": "ok"}})},
    )
    ready = _health(
        name="ready",
        summary="Whether messages get through this pod",
        answers={
            200: Answer("They do.", ("Ready",), {"ready": {"status": "ready"}}),
            503: Answer("They do not.", ("NotReady",), {"draining": draining}),
        },
    )
    openapi = _health(
        name="openapi",
        summary="What this port answers",
        answers={
            200: Answer("This document.", ("Document",), headers=headers),
            304: Answer("It is the one that you have.", headers=headers),
        },
        parameters=("If-None-Match",),
        harmless=False,
    )
    return {
        ("GET", "/health"): health,
        ("GET", "/livez"): live,
        ("GET", "/readyz"): ready,
        ("GET", "/openapi.json"): openapi,
    }


def _watched(settings: Settings) -> Operations:
    tenants = ("ClusterConnections", "TenantConnections")
    detailed = _stats(
        name="detailedHealth",
        summary="How this pod, Redis and the routers are",
        answers={200: Answer("How they are.", ("DetailedHealth",), {"ok": _DETAILED})},
        refused=(REDIS,),
    )
    connections = _stats(
        name="connectionStats",
        summary="Open connections of the whole cluster, or of one tenant",
        answers={200: Answer("Of whom was asked.", tenants, {"cluster": _CLUSTER, "tenant": _TENANT})},
        description="A tenant's token is told its own tenant's.",
        parameters=("tenant_id",),
        refused=(ID, QUERY, REDIS),
    )
    chat = _stats(
        name="chatStats",
        summary="What was sent and delivered, and what waits",
        answers={200: Answer("Of the whole cluster.", ("ChatStats",), {"quiet": _chat(settings)})},
        description="For tokens of operators.",
        refused=({403: ("forbidden",)}, REDIS),
    )
    types: dict[str, dict[str, str]] = {"text/plain": {}, "application/openmetrics-text": {}}
    metrics = _stats(
        name="metrics",
        summary="Metrics",
        answers={200: Answer("Prometheus's text format, or OpenMetrics if `Accept` asks.", content=types)},
        description="They are listed in docs/metrics.md.",
    )
    if settings.admin_port:  # there the network says who may read them
        metrics = metrics._replace(scopes=())
    return {
        ("GET", "/health/detailed"): detailed,
        ("GET", "/ws/stats"): connections,
        ("GET", "/api/chat/stats"): chat,
        ("GET", "/metrics"): metrics,
    }


def _chat(settings: Settings) -> dict[str, Any]:
    names = {tier: settings.keys().actions(tier) for tier in TIERS}
    queues = [{"tier": tier, "queue_name": name, "actions": 0} for tier, name in names.items()]
    counts = {"sends_accepted": 12, "messages_delivered": 40, "pods": 1}
    return {**counts, "queues": queues, "routers": [_ROUTER], "answered_by": "pod-7f3a"}


def _log_level() -> Operations:
    told = Answer("Of the pod that answers.", ("LogLevel",), {"debug": _LEVEL})
    show = _admin(
        name="logLevel",
        summary="The level of a pod's log",
        answers={200: told},
        description="For tokens of operators.",
        refused=(OPERATOR,),
    )
    change = _admin(
        name="setLogLevel",
        summary="Change it, for a while or until the pod stops",
        answers={200: told},
        description="For tokens of operators. It is that of the pod that answers.",
        body=Body(("LogLevelBody",), {"debug": {"level": "debug", "for_s": 60}}),
        refused=(OPERATOR, BODY),
    )
    return {("GET", _LOG_LEVEL): show, ("PUT", _LOG_LEVEL): change}


def _connections() -> Operations:
    one = {"connections": [_CONNECTION], "more": False}
    listed = _admin(
        name="connections",
        summary="List open connections",
        answers={200: Answer("Some.", ("Connections",), {"one": one})},
        parameters=("tenant_id", "session_id", "user_id", "limit"),
        refused=(ID, QUERY, FIELD, REDIS),
    )
    close = _admin(
        name="closeConnections",
        summary="Close connections on all pods",
        answers={202: Answer("All pods have been told.", ("Done",), DONE)},
        description=_CLOSE,
        body=Body(("CloseBody",), {"user": {"user_id": "ann", "reconnect": False}}),
        refused=(ID, BODY, REDIS),
    )
    return {("GET", _CONNECTIONS): listed, ("POST", f"{_CONNECTIONS}/close"): close}


_CLOSE = """One field at least says which. A tenant's token stands for its `tenant_id`, and so alone for all
of the tenant's. The order is not kept: a pod that is cut off from Redis does not carry it out."""


def _revocations() -> Operations:
    listed = _admin(
        name="revocations",
        summary="List what is revoked",
        answers={200: Answer("All of it.", ("RevocationsList",), {"one": {"revocations": [_REVOKED]}})},
        parameters=("tenant_id",),
        refused=(ID, QUERY, REDIS),
    )
    revoke = _admin(
        name="revoke",
        summary="Revoke a token, a user's tokens, or all of a tenant",
        answers={201: Answer("In force on all pods within a second.", ("Revocation",), {"user": _REVOKED})},
        description="With an operator's token `tenant_id` is needed.",
        body=Body(("RevocationBody",), {"user": {"user_id": "ann"}, "token": {"token_id": "t-1"}}),
        refused=(ID, BODY, WHICH, NO_ROOM, REDIS),
    )
    lift = _admin(
        name="lift",
        summary="End a revocation",
        answers={200: Answer("It has ended.", ("Done",), DONE)},
        description="With an operator's token `tenant_id` is needed.",
        parameters=("revoked.tenant_id", "token_id", "user_id"),
        refused=(ID, QUERY, FIELD, WHICH, LIFTING, REDIS),
    )
    return {("GET", _REVOCATIONS): listed, ("POST", _REVOCATIONS): revoke, ("DELETE", _REVOCATIONS): lift}


def _limits() -> Operations:
    show = _admin(
        name="limits",
        summary="The limits that a tenant has instead of its tier's",
        answers={200: Answer("Its own.", ("TenantLimits",), {"own": _OWN_LIMITS})},
        refused=(ID, REDIS),
    )
    change = _admin(
        name="setLimits",
        summary="Set them, all at once",
        answers={200: Answer("In force with its next send.", ("TenantLimits",), {"own": _OWN_LIMITS})},
        description="For tokens of operators.",
        body=Body(("TenantLimits",), {"own": _OWN_LIMITS}),
        refused=(ID, BODY, REDIS),
    )
    return {("GET", _LIMITS): show, ("PUT", _LIMITS): change}
