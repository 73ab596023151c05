"""Every way in for which a token is needed: what to show there, and what counts as having got in."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple
from urllib.parse import quote

from tests.support.adversary.siege import Attempt, Siege
from tests.support.adversary.tokens import Claims, Flaw
from tests.support.adversary.wire import Answer, ask, knock
from tests.support.processes import Pod

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


def _get(target: str) -> Knock:
    async def get(siege: Siege, pod: Pod, token: str) -> Answer:
        filled = target.format(session=siege.session, tenant=siege.blue)
        return await ask(pod.port, "GET", filled, [("Authorization", f"Bearer {token}")])

    return get


def _say(method: str, target: str, body: dict[str, object]) -> Knock:
    async def say(_siege: Siege, pod: Pod, token: str) -> Answer:
        headers = [("Authorization", f"Bearer {token}")]
        return await ask(pod.port, method, target, headers, json.dumps(body).encode())

    return say


SEND = Door("send", "chat", _ann, _send)
DOORS = (
    Door("ws header", "listen", _ann, _by_header),
    Door("ws subprotocol", "listen", _ann, _by_subprotocol),
    Door("ws query", "listen", _ann, _by_query),
    SEND,
    Door("messages", "listen", _ann, _get("/api/chat/sessions/{session}/messages")),
    Door("auth", "listen", lambda siege: siege.as_mallory(scope="chat listen"), _auth),
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


def attempts(siege: Siege, flaws: Sequence[Flaw], doors_each: int = len(DOORS)) -> Iterator[Attempt]:
    """Each flaw at some of the doors, in turn, so that each door sees as many of them."""
    doors = cycle(DOORS)
    for flaw in flaws:
        for door in islice(doors, doors_each):
            yield attempt(siege, door, flaw)


def attempt(siege: Siege, door: Door, flaw: Flaw, pod: Pod | None = None) -> Attempt:
    """One flaw at one door."""
    name, spoil = flaw
    at = pod or siege.pod()
    return Attempt(f"{name}, {door.name}", lambda: door.knock(siege, at, spoil(door.whose(siege))))
