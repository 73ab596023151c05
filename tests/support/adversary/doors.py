"""Every way in for which a token is needed: what to show there, and what counts as having got in."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple
from urllib.parse import quote

from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import Claims, Flaw
from tests.support.adversary.wire import Answer, ask, bearer, knock
from tests.support.processes import Pod

_NEWS: dict[str, object] = {"to": {"topic": "nobodys"}, "payload": "news"}

Knock = Callable[[Siege, Pod, str], Awaitable[Answer]]


class Door(NamedTuple):
    """One way in.

    Attributes:
        whose: the claims with which it opens.
        scope: what they need among their scopes; empty: nothing.
    """

    name: str
    scope: str
    whose: Callable[[Siege], Claims]
    knock: Knock


def _ann(siege: Siege) -> Claims:
    return siege.as_ann()


async def _by_header(siege: Siege, pod: Pod, token: str) -> Answer:
    return await knock(pod.port, f"/ws/{siege.session}", [("Authorization", f"Bearer {token}")])


async def _by_subprotocol(siege: Siege, pod: Pod, token: str) -> Answer:
    offer = f"orchestrator.v1, bearer.{token}"
    return await knock(pod.port, f"/ws/{siege.session}", [("Sec-WebSocket-Protocol", offer)])


async def _by_query(siege: Siege, pod: Pod, token: str) -> Answer:
    return await knock(pod.port, f"/ws/{siege.session}?token={quote(token, safe='')}")


async def _send(siege: Siege, pod: Pod, token: str) -> Answer:
    return await siege.send(token, siege.message(), ("X-Session-ID", siege.session), pod=pod)


async def _auth(siege: Siege, pod: Pod, token: str) -> Answer:
    return await siege.spoken[pod.port].say({"type": "auth", "token": token})


async def _lift(siege: Siege, pod: Pod, token: str) -> Answer:
    target = "/api/admin/revocations?tenant_id=nobody&token_id=nothing"
    answer = await ask(pod.port, "DELETE", target, [("Authorization", f"Bearer {token}")])
    return answer._replace(accepted=answer.accepted or 404 in answer.statuses)  # so far comes who is let in


def _ann_at_desk(siege: Siege) -> Claims:
    return siege.as_ann(session_id=siege.desk)


async def _cancel_by_name(siege: Siege, pod: Pod, token: str) -> Answer:
    headers = [*bearer(token), ("X-Session-ID", siege.desk)]
    content = json.dumps({"client_message_id": siege.victims.desk.names["waiting"]}).encode()
    return await ask(pod.port, "POST", "/api/chat/cancel", headers, content)


def _of_task(kind: str, what: str = "", body: Callable[[Siege], object] | None = None) -> Knock:
    """Something about one of ann's tasks: shown, or told."""

    async def ask_about(siege: Siege, pod: Pod, token: str) -> Answer:
        target = f"/api/chat/tasks/{siege.victims.desk.tasks[kind]}{what}"
        content = None if body is None else json.dumps(body(siege)).encode()
        return await ask(pod.port, "GET" if body is None else "POST", target, bearer(token), content)

    return ask_about


def _answer_of(siege: Siege) -> object:
    return {"input_id": siege.victims.desk.input_id, "value": "yes"}


def _get(target: str) -> Knock:
    async def get(siege: Siege, pod: Pod, token: str) -> Answer:
        filled = target.format(session=siege.session, desk=siege.desk, tenant=siege.blue)
        return await ask(pod.port, "GET", filled, [("Authorization", f"Bearer {token}")])

    return get


def _say(method: str, target: str, body: dict[str, object]) -> Knock:
    async def say(_siege: Siege, pod: Pod, token: str) -> Answer:
        headers = [("Authorization", f"Bearer {token}")]
        return await ask(pod.port, method, target, headers, json.dumps(body).encode())

    return say


async def _events_by_query(siege: Siege, pod: Pod, token: str) -> Answer:
    return await ask(pod.port, "GET", f"{events_of(siege.session)}?token={quote(token, safe='')}")


def _post_to(kind: str) -> Knock:
    async def post(siege: Siege, pod: Pod, token: str) -> Answer:
        target = f"{events_of(siege.session)}?format={kind}"
        asks = (*bearer(token), ("X-Agent-ID", "agent-1"))
        return await ask(pod.port, "POST", target, asks, posted(kind, siege.message(), siege.word()))

    return post


STREAMS = (
    Door("events", "listen", _ann, _get("/api/chat/sessions/{session}/events?stream=1")),
    Door("events by query", "listen", _ann, _events_by_query),
    Door("events for AG-UI", "listen", _ann, _get("/api/chat/sessions/{session}/events?format=ag-ui")),
    Door("AI SDK, again", "listen", _ann_at_desk, _get("/api/chat/sessions/{desk}/events/c/stream")),
    Door("AG-UI run", "chat", _ann, _post_to("ag-ui")),
    Door("AI SDK chat", "chat", _ann, _post_to("ai-sdk")),
)
SEND = Door("send", "chat", _ann, _send)
DOORS = (
    Door("ws header", "listen", _ann, _by_header),
    Door("ws subprotocol", "listen", _ann, _by_subprotocol),
    Door("ws query", "listen", _ann, _by_query),
    SEND,
    Door("messages", "listen", _ann, _get("/api/chat/sessions/{session}/messages")),
    Door("auth", "listen", lambda siege: siege.as_mallory(scope="chat listen"), _auth),
    *STREAMS,
    Door("show a task", "listen", _ann_at_desk, _of_task("going")),
    Door("cancel a task", "chat", _ann_at_desk, _of_task("waiting", "/cancel", lambda _siege: {})),
    Door("cancel by name", "chat", _ann_at_desk, _cancel_by_name),
    Door("answer a task", "chat", _ann_at_desk, _of_task("asking", "/input", _answer_of)),
    Door("broadcast", "broadcast", _ann, _say("POST", "/api/broadcast", _NEWS)),
    Door("ws stats", "stats", _ann, _get("/ws/stats")),
    Door("connections", "admin", _ann, _get("/api/admin/connections")),
    Door("detailed health", "stats", _ann, _get("/health/detailed")),
    Door("revocations", "admin", _ann, _get("/api/admin/revocations")),
    Door("limits", "admin", _ann, _get("/api/admin/tenants/{tenant}/limits")),
    Door("close", "admin", _ann, _say("POST", "/api/admin/connections/close", {"session_id": "nobodys"})),
    Door("revoke", "admin", _ann, _say("POST", "/api/admin/revocations", {"token_id": "nothing"})),
    Door("lift", "admin", Siege.as_operator, _lift),
    Door("chat stats", "stats", Siege.as_operator, _get("/api/chat/stats")),
    Door("set limits", "admin", Siege.as_operator, _say("PUT", "/api/admin/tenants/nobody/limits", {})),
)


def events_of(session: str) -> str:
    """The address of a session's event stream."""
    return f"/api/chat/sessions/{quote(session, safe='')}/events"


def posted(kind: str, note: str, message_id: str, said: str = "thread") -> bytes:
    """What the clients of other protocols post.

    Args:
        said: what they call the conversation; the session's name is in the address.
    """
    body: dict[str, object]
    if kind == "ag-ui":
        message: dict[str, object] = {"id": message_id, "role": "user", "content": note}
        body = {"threadId": said, "runId": said, "messages": [message]}
    else:
        parts = [{"type": "text", "text": note}]
        body = {"id": said, "messages": [{"id": message_id, "role": "user", "parts": parts}]}
    return json.dumps(body).encode()


def attempts(siege: Siege, flaws: Sequence[Flaw], doors_each: int = len(DOORS)) -> Iterator[Attempt]:
    """Each flaw at every event stream, and at some of the other doors, in turn."""
    others = cycle([door for door in DOORS if door not in STREAMS])
    for flaw in flaws:
        for door in (*STREAMS, *islice(others, min(doors_each, len(DOORS) - len(STREAMS)))):
            yield attempt(siege, door, flaw)


def attempt(siege: Siege, door: Door, flaw: Flaw, pod: Pod | None = None) -> Attempt:
    """One flaw at one door."""
    name, spoil = flaw
    at = pod or siege.pod()
    return Attempt(f"{name}, {door.name}", lambda: door.knock(siege, at, spoil(door.whose(siege))))
