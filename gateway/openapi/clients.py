"""What clients may ask: to send, to follow and to read sessions, to tell others of events."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.openapi import refusals as may_say
from gateway.openapi.examples import CURSOR, MESSAGES, TASK, TASK_ID, streams
from gateway.openapi.operation import RATE_HEADERS, Answer, Body, Operation
from gateway.openapi.refusals import BODY, QUERY, REDIS, SESSION, WHO

Operations = dict[tuple[str, str], Operation]

_TASKS = "/api/chat/tasks/{task_id}"
_EVENTS = "/api/chat/sessions/{session_id}/events"
_WHO = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
_WHO_OF_A_SESSION = ("X-Tenant-ID", "X-Tenant-Tier", "X-User-ID", "X-Agent-ID")
_MESSAGE = (
    "X-Context-Type", "X-Conversation-ID", "X-Collection-ID", "X-Request-Source", "X-Client-Version",
    "Idempotency-Key", "traceparent", "tracestate",
)  # fmt: skip
_FOLLOWS = (
    *_WHO_OF_A_SESSION, "tenant_id", "tenant_tier", "user_id", "agent_id", "format", "v", "events.cursor",
    "last_event_id", "Last-Event-ID", "stream", "have", "task_id",
)  # fmt: skip
_STREAM = "text/event-stream"
DONE: Mapping[str, Any] = MappingProxyType({"done": {"success": True}})
_ENDED: Mapping[str, Any] = MappingProxyType(
    {"cancelled": {"success": True, "task_id": TASK_ID, "status": "cancelled", "cancelled": True}}
)


def clients(settings: Settings) -> Operations:
    """The operations, by method and path."""
    return {**_chat(settings), **_of_tasks(), **_sessions()}


def _chat(settings: Settings) -> Operations:
    accepted = {
        "success": True,
        "task_id": TASK_ID,
        "message": "Message accepted; the answer comes over the session's sockets.",
        "queue_name": settings.keys().actions("free"),
        "estimated_time": settings.for_tier("estimated_time_s", "free"),
        "deadline_at": "2026-01-31T12:00:30+00:00",
        "cursor": CURSOR,
        "duplicate": False,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    send = Operation(
        name="send",
        tag="chat",
        summary="Say something to an agent",
        answers={
            200: Answer("It is a task now.", ("Accepted",), {"accepted": accepted}, headers=RATE_HEADERS)
        },
        description=_LIMITED.format(rows="\n".join(_row(settings, tier) for tier in TIERS)),
        scopes=("chat",),
        parameters=(*_WHO, *_MESSAGE, "X-Task-Timeout"),
        needed=("X-Agent-ID",),
        needed_without_tokens=("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID"),
        body=Body(("ChatBody",), {"short": {"message": "hello"}, "named": _NAMED}),
        refused=(WHO, BODY, may_say.SEND),
    )
    broadcast = Operation(
        name="broadcast",
        tag="events",
        summary="Tell many of an event",
        answers={200: Answer("It was published.", ("Done",), DONE)},
        description=_BROADCAST,
        scopes=("broadcast",),
        parameters=("X-Tenant-ID",),
        body=Body(("BroadcastBody",), {"topic": {"to": {"topic": "orders/7"}, "payload": {"state": "sent"}}}),
        refused=(WHO, BODY, REDIS),
    )
    return {("POST", "/api/chat/send"): send, ("POST", "/api/broadcast"): broadcast}


_BROADCAST = """To all connections of a tenant or tier, to the subscribers of a topic or agent, or to one
session; on every pod. `tenant_id` in the body counts before the header."""
_NAMED = {"message": "hello", "client_message_id": "m-1", "busy_policy": "enqueue", "timeout": 20}
_LIMITED = """The answer comes over the session's sockets and event streams: follow it from `cursor`. With an
`Idempotency-Key` or a `client_message_id` the same may be sent again.

A tenant's limits (0: unlimited; an administrator can set others), and a task's time:

| tier | sends a minute | a day | in a session an hour | time |
|---|---|---|---|---|
{rows}"""


def _row(settings: Settings, tier: str) -> str:
    names = ("sends_per_minute", "sends_per_day", "sends_per_session_hour", "task_timeout_s")
    minute, day, session, time_s = (settings.for_tier(name, tier) for name in names)
    return f"| {tier} | {minute} | {day} | {session} | {time_s} s |"


def _of_tasks() -> Operations:
    cancelled = {200: Answer("How it has ended.", ("Cancelled",), _ENDED)}
    taken = {"success": True, "task_id": TASK_ID, "input_id": "i-1"}
    show = Operation(
        name="task",
        tag="tasks",
        summary="How a task stands",
        answers={200: Answer("The task.", ("Task",), {"completed": TASK})},
        description="It is known for a while after its end (`TASK_KEPT_S`).",
        scopes=("listen",),
        parameters=_WHO,
        needed_without_tokens=("X-Tenant-ID",),
        refused=(WHO, may_say.TASK),
    )
    cancel = Operation(
        name="cancelTask",
        tag="tasks",
        summary="End a task",
        answers=cancelled,
        description="One that has ended is answered with how it did; asking again is answered the same.",
        scopes=("chat",),
        parameters=_WHO,
        needed_without_tokens=("X-Tenant-ID",),
        body=Body(("CancelBody",), {"why": {"reason": "not needed any more"}}, required=False),
        refused=(WHO, BODY, may_say.TASK),
    )
    named = cancel._replace(
        name="cancelMessage",
        summary="End a task that is known by its message",
        description="For who has no `task_id` yet. It needs the session.",
        body=Body(("NamedCancelBody",), {"message": {"client_message_id": "m-1"}}),
    )
    answer = cancel._replace(
        name="answerInput",
        summary="Answer what an agent asks",
        answers={200: Answer("The agent gets the value.", ("InputTaken",), {"taken": taken})},
        description="The first answer counts; the same may be sent again.",
        body=Body(("InputBody",), {"yes": {"input_id": "i-1", "value": True}}),
        refused=(*cancel.refused, may_say.INPUT),
    )
    return {
        ("GET", _TASKS): show,
        ("POST", f"{_TASKS}/cancel"): cancel,
        ("POST", "/api/chat/cancel"): named,
        ("POST", f"{_TASKS}/input"): answer,
    }


def _sessions() -> Operations:
    page = {
        "messages": MESSAGES, "status": "replayed", "cursor": CURSOR.replace(":0", ":2"), "oldest": 1,
        "head": 2, "more": False,
    }  # fmt: skip
    told = streams()
    ours = {"ai-sdk": told["ai-sdk"]}
    shown = {"ag-ui": told["ag-ui"], **ours}
    messages = Operation(
        name="messages",
        tag="sessions",
        summary="Read a session's log",
        answers={200: Answer("A page.", ("MessagesPage",), {"both": page})},
        description=_MESSAGES,
        scopes=("listen",),
        parameters=(*_WHO_OF_A_SESSION, "cursor"),
        needed_without_tokens=("X-Tenant-ID", "X-Tenant-Tier"),
        refused=(WHO, QUERY, SESSION, may_say.CURSOR),
    )
    nothing = Answer("No task runs whose stream could go on (`format=ai-sdk` without `task_id`).")
    follow = Operation(
        name="follow",
        tag="sessions",
        summary="Follow a session",
        answers={200: Answer("Events, until the connection ends.", content={_STREAM: told}), 204: nothing},
        description=_FOLLOW,
        scopes=("listen",),
        parameters=_FOLLOWS,
        query_token=True,
        refused=(WHO, QUERY, SESSION, may_say.TASK, may_say.CURSOR, may_say.CONNECTION),
    )
    run = follow._replace(
        name="run",
        summary="Say something and follow its task, in another protocol's words",
        answers={200: Answer("The task's events.", content={_STREAM: shown}, headers=RATE_HEADERS)},
        description=_RUN,
        scopes=("listen", "chat"),
        parameters=(*_FOLLOWS, *_MESSAGE),
        body=Body(("RunAgentInput", "ChatRequest"), _POSTED),
        refused=(*follow.refused, BODY, may_say.SEND, may_say.INPUT, may_say.METHOD),
    )
    again = follow._replace(
        name="resumeRun",
        summary="Follow the task that runs, in the AI SDK's words",
        answers={200: Answer("The task's events.", content={_STREAM: ours}), 204: nothing},
        description="Where `useChat` asks with `resume: true`.",
        parameters=tuple(name for name in _FOLLOWS if name not in ("format", "stream", "have")),
    )
    return {
        ("GET", "/api/chat/sessions/{session_id}/messages"): messages,
        ("GET", _EVENTS): follow,
        ("POST", _EVENTS): run,
        ("GET", f"{_EVENTS}/{{chat_id}}/stream"): again,
    }


_MESSAGES = """What follows the cursor, without one from the oldest message on. While there is `more`, ask
again with the answer's cursor."""
_RUN = """For the clients of AG-UI and the AI SDK; say which by `format` or `Accept`. A message needs
`X-Agent-ID` or `agent_id`. One that was posted before is not sent again: the stream begins anew. Answers to
what the agent asked go on with its task."""
_FOLLOW = """Server-Sent Events: the messages that a socket gets, each as one event without a type, whose
`data:` is a `Message` in JSON. The first is `connection_ack`. Those of the log have their cursor as `id:`; an
`EventSource` comes back with it as `Last-Event-ID` by itself, to any pod, and goes on where it was. Without a
cursor you get what no connection of the session has been sent yet.

`retry:` says when to come back. The last message says why: `reconnect`, or an `error`.

`format=ag-ui` and `format=ai-sdk` tell the same in the words of those protocols, for their own clients. What
the headers say may stand in the query, because an `EventSource` sets none."""
_POSTED: Mapping[str, Any] = {
    "ag-ui": {
        "threadId": "s-1",
        "runId": "r-1",
        "messages": [{"id": "m-1", "role": "user", "content": "hello"}],
    },
    "ai-sdk": {"messages": [{"id": "m-1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]},
}
