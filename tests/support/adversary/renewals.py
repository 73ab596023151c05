"""Classes of tokens that come later: shown on an open socket in place of another, and revoked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.support.adversary.doors import events_of, posted
from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import FILE_RSA, Claims, by_hmac, by_rsa
from tests.support.adversary.wire import Answer, Line, Talk, ask, bearer, knock, listen, talk
from tests.support.processes import Pod

LIMIT_S = 1.0
"""Within which a revocation is in force everywhere."""
_SOCKETS = 3  # of each revoked token, on each pod


# Tokens swapped on an open socket.


async def swapped(siege: Siege) -> None:
    """On open sockets: tokens of others, and bad ones; the socket must go on as who it was."""
    gone = siege.as_mal()
    asked_at = await _revoke(siege, siege.pods[0], {"tenant_id": siege.blue, "token_id": gone["jti"]})
    for pod in siege.pods:
        token = siege.mint.token({**gone, "scope": "admin"})
        await _until_refused(siege, pod, token, asked_at, f"revoked for later, {pod.port}")
    for pod in siege.pods:
        await siege.run([_swap(siege, pod, *case) for case in _cases(siege, gone)], at_once=16)


def _cases(siege: Siege, gone: Claims) -> list[tuple[str, Claims, str]]:
    """What is tried, whose socket it is, and the token that is shown on it."""
    mint, now = siege.mint, int(time.time())
    mal, common = siege.as_mal(), siege.as_mal(sub=...)
    limited = siege.as_mal(session_id="mine-*")
    bad, strange = by_hmac(b"x" * 32), by_rsa(mint.stranger_rsa)
    by_mal: dict[str, str] = {
        "another tenant's": mint.token(siege.as_mallory()),
        "another tenant's, same user": mint.token(siege.as_mallory(sub=siege.mal)),
        "another user's": mint.token(siege.as_ann(session_id=...)),
        "another user's, with all rights": mint.token(siege.as_ann(session_id="*")),
        "nobody's": mint.token(common),
        "an administrator's": mint.token(siege.as_mal(sub=..., scope=ALL_SCOPES)),
        "an operator's": mint.token(siege.as_operator()),
        "for another session": mint.token(siege.as_mal(session_id=siege.session)),
        "for other sessions": mint.token(siege.as_mal(session_id=["web-*", "min"])),
        "for no session": mint.token(siege.as_mal(session_id=[])),
        "without listen": mint.token(siege.as_mal(scope="chat admin stats")),
        "without scopes": mint.token(siege.as_mal(scope="")),
        "expired": mint.token(siege.as_mal(exp=now - 10)),
        "not valid yet": mint.token(siege.as_mal(nbf=now + 600)),
        "for another audience": mint.token(siege.as_mal(aud="another")),
        "from another issuer": mint.token(siege.as_mal(iss="another")),
        "without an end": mint.token(siege.as_mal(exp=...)),
        "forged": mint.token(siege.as_mal(), bad),
        "forged, with a key's name": mint.token(siege.as_mal(), strange, alg="RS256", kid=FILE_RSA),
        "alg none": mint.token(siege.as_mal(), lambda _signed: b"", alg="none"),
        "revoked": mint.token(gone),
        "no token": "x",
    }
    cases = [(name, mal, token) for name, token in by_mal.items()]
    cases += [(f"{name}, session-bound", limited, token) for name, token in list(by_mal.items())[:10]]
    cases.append(("a user's on nobody's socket", common, mint.token(siege.as_mal())))
    cases.append(("ann's on nobody's socket", common, mint.token(siege.as_ann(session_id=...))))
    return cases


def _swap(siege: Siege, pod: Pod, name: str, whose: Claims, token: str) -> Attempt:
    async def act() -> Answer:
        session = f"mine-{siege.word()}"
        socket = await talk(pod.port, f"/ws/{session}", bearer(siege.mint.token(whose)))
        answer = await socket.say({"type": "auth", "token": token})
        note = siege.message(whose["tenant_id"], session, whose.get("sub"))
        after = await socket.say({"type": "chat", "message": note, "agent_id": "agent-1"})
        # Whatever is said next is said by who it was before: the queue shows as whom.
        siege.judge(f"chat after {name}", after, fair=True)
        if not after.accepted:
            siege.tally.crashed.add(f"the socket lost its own rights: {name}")
        socket.drop()
        return answer

    return Attempt(f"{name} on {pod.port}", act)


async def _revoke(siege: Siege, pod: Pod, body: dict[str, Any]) -> float:
    """As an operator; returns when it was asked for."""
    token, asked_at = siege.mint.token(siege.as_operator()), asyncio.get_running_loop().time()
    answer = await ask(pod.port, "POST", "/api/admin/revocations", bearer(token), json.dumps(body).encode())
    assert answer.accepted, answer.received
    return asked_at


# Revoked tokens.


async def revoked(siege: Siege) -> None:
    """By token, user and tenant: open sockets, and tokens at every door, on all pods within a second."""
    kinds: dict[str, Callable[[], tuple[Claims, dict[str, Any]]]] = {
        "token": lambda: _one_token(siege),
        "user": lambda: _one_user(siege),
        "tenant": lambda: _one_tenant(siege),
    }
    worst = await asyncio.gather(*[_revoked_kind(siege, kind, *make()) for kind, make in kinds.items()])
    siege.slowest_revocation_s = max(worst)


def _one_token(siege: Siege) -> tuple[Claims, dict[str, Any]]:
    claims = siege.as_mallory(sub=siege.word(), scope=ALL_SCOPES)
    return claims, {"tenant_id": siege.red, "token_id": claims["jti"]}


def _one_user(siege: Siege) -> tuple[Claims, dict[str, Any]]:
    user = siege.word()
    return siege.as_mallory(sub=user, scope=ALL_SCOPES), {"tenant_id": siege.red, "user_id": user}


def _one_tenant(siege: Siege) -> tuple[Claims, dict[str, Any]]:
    tenant = siege.word()
    return siege.as_mallory(tenant_id=tenant, sub=siege.word(), scope=ALL_SCOPES), {"tenant_id": tenant}


async def _revoked_kind(siege: Siege, kind: str, claims: Claims, body: dict[str, Any]) -> float:
    token, session = siege.mint.token(claims), f"r-{siege.word()}"
    sockets = [
        await talk(pod.port, f"/ws/{session}", bearer(token)) for pod in siege.pods for _ in range(_SOCKETS)
    ]
    streams = [
        await listen(pod.port, f"{events_of(session)}{query}", bearer(token))
        for pod in siege.pods
        for query in ("?stream=1", "?format=ag-ui")
    ]
    for pod in siege.pods:  # it was seen before, so every pod has it verified
        assert (await _list(pod, token)).accepted
    asked_at = await _revoke(siege, siege.pods[0], body)
    closing = [_until_closed(siege, socket, asked_at, f"{kind}, an open socket") for socket in sockets]
    closing += [_until_ended(siege, line, asked_at, f"{kind}, an open stream") for line in streams]
    using = [_until_refused(siege, pod, token, asked_at, f"{kind}, HTTP on {pod.port}") for pod in siege.pods]
    worst = max(await asyncio.gather(*closing, *using))
    await siege.run(_afterwards(siege, kind, token, session))
    return worst


async def _until_closed(siege: Siege, socket: Talk, since: float, name: str) -> float:
    await socket.until(lambda _came: socket.close_code is not None, LIMIT_S + 0.5)
    took_s = socket.closed_at - since if socket.closed_at else LIMIT_S + 0.5
    stayed = took_s > LIMIT_S
    siege.judge(name, Answer(stayed, b"", bytes(socket.came)))
    if not stayed and socket.close_code != 4501:
        siege.tally.crashed.add(f"{name}: closed with {socket.close_code}")
    socket.drop()
    return took_s


async def _until_ended(siege: Siege, line: Line, since: float, name: str) -> float:
    await line.until(lambda _came: line.ended, LIMIT_S + 0.5)
    took_s = asyncio.get_running_loop().time() - since
    siege.judge(name, Answer(not line.ended or took_s > LIMIT_S, b"", bytes(line.came)))
    line.drop()
    return took_s


async def _until_refused(siege: Siege, pod: Pod, token: str, since: float, name: str) -> float:
    """Use a token until it is refused; returns how long it was of use."""
    loop, last = asyncio.get_running_loop(), 0.0
    while loop.time() - since < LIMIT_S:
        answer = await _list(pod, token)
        siege.judge(name, answer, fair=True)
        if not answer.accepted:
            break
        last = loop.time() - since
        await asyncio.sleep(0.005)
    siege.judge(f"{name}, in the end", await _list(pod, token))
    return last


async def _list(pod: Pod, token: str) -> Answer:
    return await ask(pod.port, "GET", "/api/admin/connections", bearer(token))


def _afterwards(siege: Siege, kind: str, token: str, session: str) -> list[Attempt]:
    """The revoked token at every door of every pod."""
    target, limits = f"/ws/{session}", f"/api/admin/tenants/{siege.red}/limits"
    offer = [("Sec-WebSocket-Protocol", f"orchestrator.v1, bearer.{token}")]
    messages, to_session = f"/api/chat/sessions/{session}/messages", ("X-Session-ID", session)
    news = json.dumps({"to": {"tenant": True}, "payload": "revoked"}).encode()
    run, to_agent = f"{events_of(session)}?format=ag-ui", ("X-Agent-ID", "agent-1")
    said = posted("ag-ui", siege.message(), siege.word())
    doors: dict[str, Callable[[Pod], Awaitable[Answer]]] = {
        "header": lambda pod: knock(pod.port, target, bearer(token)),
        "query": lambda pod: knock(pod.port, f"{target}?token={token}"),
        "subprotocol": lambda pod: knock(pod.port, target, offer),
        "send": lambda pod: siege.send(token, siege.message(), to_session, pod=pod),
        "messages": lambda pod: ask(pod.port, "GET", messages, bearer(token)),
        "tasks": lambda pod: ask(pod.port, "GET", "/api/chat/tasks/any", bearer(token)),
        "cancel": lambda pod: ask(pod.port, "POST", "/api/chat/tasks/any/cancel", bearer(token), b""),
        "broadcast": lambda pod: ask(pod.port, "POST", "/api/broadcast", bearer(token), news),
        "events": lambda pod: ask(pod.port, "GET", events_of(session), bearer(token)),
        "events by query": lambda pod: ask(pod.port, "GET", f"{events_of(session)}?token={token}"),
        "run": lambda pod: ask(pod.port, "POST", run, (*bearer(token), to_agent), said),
        "auth": lambda pod: siege.spoken[pod.port].say({"type": "auth", "token": token}),
        "stats": lambda pod: ask(pod.port, "GET", "/ws/stats", bearer(token)),
        "health": lambda pod: ask(pod.port, "GET", "/health/detailed", bearer(token)),
        "connections": lambda pod: _list(pod, token),
        "limits": lambda pod: ask(pod.port, "GET", limits, bearer(token)),
    }
    return [
        Attempt(f"{kind}, {name} on {pod.port}, {again}", partial(door, pod))
        for name, door in doors.items()
        for pod in siege.pods
        for again in range(3)
    ]
