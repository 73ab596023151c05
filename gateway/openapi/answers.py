"""What the endpoints answer, as types: [P] pure. Only the document is made of them; a test holds real answers
against it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from backplane.messages import Message
from backplane.revocations import Revocation

TaskStatus = Literal["queued", "working", "cancelling", "completed", "failed", "timeout", "cancelled"]
Ended = Literal["completed", "failed", "timeout", "cancelled", "unknown"]


class Done(Struct):
    """It was done."""

    success: bool


class Accepted(Struct):
    """The message is a task now, or was already; its answer comes over the session's connections."""

    success: bool
    task_id: str
    message: str
    queue_name: str
    estimated_time: int
    deadline_at: str | None
    cursor: str
    duplicate: bool
    trace_id: str


class Span(Struct):
    """Which messages of the session's log are a task's: the first and the last so far."""

    epoch: str | None
    first: int
    last: int


class Task(Struct):
    """How a task stands."""

    task_id: str
    tenant_id: str
    session_id: str | None
    agent_id: str | None
    status: TaskStatus
    input_required: bool
    attempt: int
    cursor: str | None
    messages: Span | None
    usage: dict[str, Any] | None
    reason: str | None
    late: int
    late_answer: Message | None
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    deadline_at: str | None


class Cancelled(Struct):
    """How a task has ended that was to be cancelled."""

    success: bool
    task_id: str
    status: Ended
    cancelled: bool


class InputTaken(Struct):
    """The agent gets the value."""

    success: bool
    task_id: str
    input_id: str


class MessagesPage(Struct):
    """A page of a session's log, oldest first."""

    messages: list[Message]
    status: Literal["fresh", "replayed", "reset"]
    cursor: str
    oldest: int
    head: int
    more: bool


class Alive(Struct):
    """The process runs."""

    status: Literal["ok"]
    service: Literal["agent_orchestrator"] | UnsetType = UNSET


class Ready(Struct):
    """Messages get through this pod."""

    status: Literal["ready"]
    impaired: str | UnsetType = UNSET


class NotReady(Struct):
    """They do not, or it is about to stop."""

    status: Literal["not_ready"]
    reason: str


class RedisHealth(Struct):
    """The pod's connections to Redis."""

    address: str
    connected: bool
    probe_round_trip_ms: float | None


class PodStats(Struct):
    """What a pod says of itself; counts are since its start."""

    pod_id: str
    address: str
    connections: int
    sessions: int
    ready: bool
    opened: int
    closed: dict[str, int]
    delivered: int
    gaps: int
    events_told: int
    streams_healed: int
    sends_accepted: int
    sends_repeated: int
    tasks_cancelled: int
    refused: dict[str, int]


class RouterStats(Struct):
    """What a router says of itself; its counts are since its start."""

    router_id: str
    lists: int
    oldest_s: float
    ready: bool
    reason: str | None


class DetailedHealth(Struct):
    """How this pod, Redis and the routers are."""

    status: Literal["ok", "degraded"]
    service: Literal["agent_orchestrator"]
    ready: bool
    reason: str | None
    redis: RedisHealth
    routers: int | None
    pod: PodStats


class ClusterConnections(Struct):
    """The open connections of all pods."""

    connections: int
    pods: list[PodStats]
    answered_by: str


class PodConnections(Struct):
    """A tenant's open connections on one pod."""

    pod_id: str
    connections: int


class TenantConnections(Struct):
    """The open connections of one tenant."""

    tenant_id: str
    connections: int
    pods: list[PodConnections]
    answered_by: str


class QueueStats(Struct):
    """What waits for agents in one tier's queue."""

    tier: str
    queue_name: str
    actions: int


class ChatStats(Struct):
    """What was sent and delivered by the pods that live, and what waits."""

    sends_accepted: int
    messages_delivered: int
    queues: list[QueueStats]
    routers: list[RouterStats]
    pods: int
    answered_by: str


class OpenConnection(Struct):
    """An open socket or event stream."""

    pod_id: str
    connection_id: str
    tenant_id: str
    tenant_tier: str
    session_id: str
    user_id: str | None
    since: int


class Connections(Struct):
    """Open connections of the whole cluster, in no order."""

    connections: list[OpenConnection]
    more: bool


class RevocationsList(Struct):
    """What is revoked."""

    revocations: list[Revocation]


class LogLevel(Struct):
    """What a pod logs."""

    pod_id: str
    level: Literal["debug", "info", "warning", "error"]
    configured: Literal["debug", "info", "warning", "error"]
    left_s: float | None
    lines_dropped: int
    suppressed: int


ALL = (
    Done, Accepted, Task, Cancelled, InputTaken, MessagesPage, Alive, Ready, NotReady, DetailedHealth,
    ClusterConnections, TenantConnections, ChatStats, Connections, Revocation, RevocationsList,
    LogLevel,
)  # fmt: skip
