"""Classes of right tokens in the wrong places: other tenants, sessions, users and agents, administration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.wire import Answer, Headers, ask, bearer, talk


def _get(
    siege: Siege, name: str, target: str, token: str | None, *headers: Any, fair: bool = False
) -> Attempt:
    return Attempt(f"GET {name}", lambda: siege.get(target, token, *headers), fair)


def _enter(siege: Siege, name: str, target: str, token: str, *headers: Any, fair: bool = False) -> Attempt:
    return Attempt(f"socket {name}", lambda: siege.enter(target, token, *headers), fair)


def _send(siege: Siege, name: str, token: str, *headers: Any) -> Attempt:
    return Attempt(f"send {name}", lambda: siege.send(token, siege.message(), *headers))


def _ask(
    siege: Siege, name: str, method: str, target: str, token: str, body: Any, *, fair: bool = False
) -> Attempt:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def act() -> Answer:
        return await ask(siege.pod().port, method, target, bearer(token), sent)

    return Attempt(f"{method} {name}", act, fair)


async def other_tenant(siege: Siege) -> None:
    """Red's tokens, and requests that say they are blue's."""
    red, blue, session = siege.red, siege.blue, siege.session
    token = siege.mint.token(siege.as_mallory())
    admin = siege.mint.token(siege.as_admin_of_red())
    operator = siege.mint.token(siege.as_operator())
    tenants = [
        blue,
        blue.upper(),
        red.upper(),
        f"{red}.",
        f"{red}-",
        red[:-1],
        f"{red},{blue}",
        f"{blue},{red}",
        "*",
        ".",
    ]
    tries = []
    for tenant in tenants:
        for who, shown in (("a user", token), ("an administrator", admin)):
            said = f"{who} of red says {tenant}"
            tries.append(_enter(siege, said, f"/ws/{session}?tenant_id={quote(tenant)}", shown))
            tries.append(_send(siege, said, shown, ("X-Session-ID", session), ("X-Tenant-ID", tenant)))
            tries.append(_get(siege, f"messages, {said}", _messages(session), shown, ("X-Tenant-ID", tenant)))
    for name, query, header in (
        ("tier", "tenant_tier=free", ("X-Tenant-Tier", "free")),
        ("user", f"user_id={siege.ann}", ("X-User-ID", siege.ann)),
    ):
        tries.append(_enter(siege, f"of another {name}", f"/ws/{session}?{query}", token))
        tries.append(_send(siege, f"of another {name}", token, ("X-Session-ID", session), header))
        tries.append(_get(siege, f"messages of another {name}", _messages(session), token, header))
    for tenant in ("", f"?tenant_id={blue}", "?tenant_id=*"):
        tries.append(_enter(siege, f"an operator {tenant}", f"/ws/{session}{tenant}", operator))
    for headers in ((), (("X-Tenant-ID", blue),), (("X-Tenant-ID", "*"),)):
        tries.append(_send(siege, f"an operator {headers}", operator, ("X-Session-ID", session), *headers))
        tries.append(_get(siege, f"messages, an operator {headers}", _messages(session), operator, *headers))
    # Said where nobody asks: it may be granted, as red's own.
    own, me = siege.own, siege.mallory
    for target in (f"/api/chat/send?tenant_id={blue}", "/api/chat/send"):
        for body in (
            {"tenant_id": blue},
            {"callback_queue": f"orchestrator:{blue}:callbacks"},
            _disguise(siege),
        ):
            tries.append(_own_send(siege, target, token, body, ("X-Session-ID", own)))
    tries += [
        _own_chat(siege, body, me) for body in ({"tenant_id": blue, "session_id": session}, _disguise(siege))
    ]
    await siege.run(tries)


def _disguise(siege: Siege) -> dict[str, Any]:
    """All the fields of an action, as if it were blue's."""
    base = {
        "tenant_id": siege.blue,
        "session_id": siege.session,
        "tenant_tier": "enterprise",
        "user_id": siege.ann,
    }
    return {
        **base,
        "execution_context": base,
        "metadata": base,
        "identity": base,
        "grant": base,
        "user_info": base,
    }


def _own_send(siege: Siege, target: str, token: str, body: dict[str, Any], *headers: Any) -> Attempt:
    async def act() -> Answer:
        note = siege.message(siege.red, siege.own, siege.mallory)
        content = json.dumps({"message": note, **body}).encode()
        asks: Headers = (*bearer(token), ("X-Agent-ID", "agent-1"), *headers)
        return await ask(siege.pod().port, "POST", target, asks, content)

    return Attempt(f"send as red's own with {' '.join(body)}", act, fair=True)


def _own_chat(siege: Siege, body: dict[str, Any], user: str) -> Attempt:
    async def act() -> Answer:
        socket = siege.spoken[siege.pod().port]
        note = siege.message(siege.red, siege.own, user)
        return await socket.say({"type": "chat", "message": note, "agent_id": "agent-1", **body})

    return Attempt(f"chat as red's own with {' '.join(body)}", act, fair=True)


def _messages(session: str, query: str = "") -> str:
    return f"/api/chat/sessions/{quote(session)}/messages{query}"


async def other_session(siege: Siege) -> None:
    """Tokens of blue for some of its sessions, and requests for others."""
    tries = []
    allowed: list[Any] = ["web-1", ["web-1", "web-2"], "web-*", ["web-*", "own"], []]
    wanted = [siege.session, siege.common, "web", "web-10", "web-1.", "Web-1", "web.1", "we", "other"]
    for claim in allowed:
        for session in wanted:
            if session in ("web-10", "web-1.") and "web-*" in claim:
                continue
            for user in (siege.ann, siege.mal, ...):
                token = siege.mint.token(siege.as_mal(session_id=claim, sub=user))
                said = f"{session} with {claim} as {'nobody' if user is ... else user[:3]}"
                tries += [
                    _enter(siege, said, f"/ws/{session}", token),
                    _send(siege, said, token, ("X-Session-ID", session)),
                    _get(siege, f"messages of {said}", _messages(session), token),
                ]
    token = siege.mint.token(siege.as_mal(session_id=["web-*"]))
    for name in ("web-*", "*", "web-%2A", ""):
        tries.append(_enter(siege, f"the pattern {name} itself", f"/ws/{name}", token))
        tries.append(_send(siege, f"the pattern {name} itself", token, ("X-Session-ID", name)))
    for cursor in (siege.cursor, "x:0"):
        tries.append(
            _enter(siege, f"with the cursor {cursor}", f"/ws/{siege.session}?cursor={quote(cursor)}", token)
        )
    await siege.run(tries)


async def other_user(siege: Siege) -> None:
    """Blue's other user at ann's session: listening, resuming, reading, speaking."""
    tries = []
    session = siege.session
    epoch = siege.cursor.partition(":")[0]
    people = {
        "mal": siege.as_mal(),
        "ann in capitals": siege.as_mal(sub=siege.ann.upper()),
        "almost ann": siege.as_mal(sub=siege.ann[:-1]),
        "nobody": siege.as_mal(sub=...),
        "mal for all sessions": siege.as_mal(session_id="*"),
        "mal for this session": siege.as_mal(session_id=session),
        "mal with admin": siege.as_mal(scope=ALL_SCOPES),
    }
    for name, claims in people.items():
        token = siege.mint.token(claims)
        for pod in siege.pods:
            who = f"as {name} on {pod.port}"
            tries += [
                _enter(siege, f"{who}", f"/ws/{session}", token),
                _enter(
                    siege, f"{who}, all again", f"/ws/{session}?cursor={quote(siege.cursor)}&stream=1", token
                ),
                _enter(siege, f"{who}, from the start", f"/ws/{session}?cursor={epoch}:0", token),
                _enter(siege, f"{who}, another epoch", f"/ws/{session}?cursor=ffff:0", token),
                _enter(siege, f"{who}, saying ann", f"/ws/{session}?user_id={siege.ann}", token),
                _send(siege, who, token, ("X-Session-ID", session)),
                _send(
                    siege, f"{who}, saying ann", token, ("X-Session-ID", session), ("X-User-ID", siege.ann)
                ),
                _get(siege, f"messages {who}", _messages(session), token),
                _get(
                    siege, f"messages {who}, by cursor", _messages(session, f"?cursor={siege.cursor}"), token
                ),
                _get(
                    siege, f"messages {who}, saying ann", _messages(session), token, ("X-User-ID", siege.ann)
                ),
                _get(siege, f"events {who}", f"/api/chat/sessions/{session}/events", token),
            ]
    tries += [_insider_chat(siege, siege.mint.token(siege.as_mal())) for _ in range(4)]
    await siege.run(tries)


def _insider_chat(siege: Siege, token: str) -> Attempt:
    """Mal speaks on a socket of his own, and says that it is ann's session."""

    async def act() -> Answer:
        session = f"mine-{siege.word()}"
        socket = await talk(siege.pod().port, f"/ws/{session}", bearer(token))
        note = siege.message(siege.blue, session, siege.mal)
        said = {"session_id": siege.session, "user_id": siege.ann, "agent_id": "agent-1"}
        answer = await socket.say({"type": "chat", "message": note, **said})
        socket.drop()
        return answer

    return Attempt("chat in mal's own session as if in ann's", act, fair=True)


async def other_agent(siege: Siege) -> None:
    """Tokens for some agents, and messages to others."""
    own, tries = siege.own, []
    for claim in ("sales", ["sales", "help-*"], []):
        token = siege.mint.token(siege.as_mallory(agents=claim))
        for agent in ("support", "Sales", "sale", "sales-1", "help", "Help-1", "helpers", "other"):
            said = f"{agent} with {claim}"
            session = ("X-Session-ID", own)
            tries += [
                _enter(siege, f"for {said}", f"/ws/{own}?agent_id={agent}", token),
                _send(siege, f"to {said}", token, session, ("X-Agent-ID", agent)),
                _send(siege, f"to {said}, by workflow", token, session, ("X-Agent-ID", agent), _WORKFLOW),
                _chat(siege, f"to {said}", token, agent),
            ]
    await siege.run(tries)


_WORKFLOW = ("X-Context-Type", "workflow")


def _chat(siege: Siege, name: str, token: str, agent: str) -> Attempt:
    async def act() -> Answer:
        socket = await talk(siege.pod().port, f"/ws/{siege.own}", bearer(token))
        answer = await socket.say({"type": "chat", "message": siege.message(), "agent_id": agent})
        socket.drop()
        return answer

    return Attempt(f"chat {name}", act)


async def cross_tenant(siege: Siege) -> None:
    """Red reaches for blue's logs, tasks, topics and events, by whatever message or address there may be."""
    token = siege.mint.token(siege.as_mallory(scope=ALL_SCOPES))
    await siege.run([*_resumes(siege, token), *_messages_on_sockets(siege), *_addresses(siege, token)])


def _resumes(siege: Siege, token: str) -> Iterator[Attempt]:
    """Red has sessions of the same names, and may open them, with whatever cursor; they are not blue's."""
    epoch, _, seq = siege.cursor.partition(":")
    cursors = [
        siege.cursor,
        f"{epoch}:0",
        f"{epoch}:1",
        f"{epoch}:{2**53 - 1}",
        f"{epoch.upper()}:{seq}",
        f"{epoch}:{10**18}",
        f"{epoch}:{10**30}",
        f"{epoch}:-1",
        "a:0",
    ]
    for session in (siege.session, siege.common):
        for cursor in cursors:
            target = f"/ws/{session}?stream=1&cursor={quote(cursor)}"
            yield _enter(siege, f"of red's own {session[:2]} from {cursor}", target, token, fair=True)
            target = _messages(session, f"?cursor={quote(cursor)}")
            yield _get(siege, f"messages of red's own {session[:2]} from {cursor}", target, token, fair=True)
    for session in (
        f"{siege.blue}:{siege.session}",
        f"..%2F{siege.blue}%2F{siege.session}",
        f"{siege.blue}/{siege.session}",
    ):
        yield _enter(siege, f"of a path {session}", f"/ws/{session}", token)
        yield _get(siege, f"messages of a path {session}", f"/api/chat/sessions/{session}/messages", token)
        yield _send(siege, f"to a path {session}", token, ("X-Session-ID", session))


def _messages_on_sockets(siege: Siege) -> Iterator[Attempt]:
    """What a client might say on its socket to get at another's."""
    base = {
        "tenant_id": siege.blue,
        "session_id": siege.session,
        "user_id": siege.ann,
        "cursor": siege.cursor,
    }
    task, topics = (
        siege.victims.work.tasks["going"],
        [siege.session, f"session:{siege.session}", f"{siege.blue}:orders", "*"],
    )
    kinds: dict[str, dict[str, Any]] = {
        "cancel": {"task_id": task, "reason": "because"},
        "resume": base,
        "history": base,
        "messages": base,
        "events": base,
        "tasks": base,
        "task": {"task_id": task},
        "task_read": {"task_id": task},
        "connections": base,
        "listen": base,
        "join": base,
        "open": base,
        "switch": base,
        "admin": base,
        "revoke": {"tenant_id": siege.blue},
        "close": base,
        "stats": base,
        "broadcast": {"topic": "orders", "payload": {}, **base},
        "event": {"topic": "orders", "payload": {}, **base},
        "agent_response": {"data": {"response": "x"}, **base},
        "connection_ack": base,
        "transfer": base,
        "auth ": {"token": "x"},
        "Auth": {"token": "x"},
    }
    for kind, fields in kinds.items():
        for form in (fields, {"data": fields}, {**fields, **base}):
            yield _said(siege, {"type": kind, **form})
    for topic in topics:
        for kind in ("subscribe", "unsubscribe"):
            # A topic may be any word, and is red's own then: what counts is what is heard.
            yield _said(siege, {"type": kind, "topics": [topic], **base}, fair=True)


def _said(siege: Siege, message: dict[str, Any], *, fair: bool = False) -> Attempt:
    async def act() -> Answer:
        return await siege.spoken[siege.pod().port].say(message)

    return Attempt(f"{message['type']} with {' '.join(message)}", act, fair)


def _addresses(siege: Siege, token: str) -> Iterator[Attempt]:
    """Addresses at which there may be something of blue's, now or later."""
    session, task, blue = siege.session, siege.victims.work.tasks["going"], siege.blue
    targets = [
        f"/api/chat/sessions/{session}/messages", f"/api/chat/sessions/{session}/events",
        f"/api/chat/sessions/{session}", "/api/chat/sessions", f"/api/chat/tasks/{task}", "/api/chat/tasks",
        f"/api/chat/sessions/{session}/tasks", f"/api/tenants/{blue}/sessions/{session}/messages",
        f"/api/chat/{blue}/sessions/{session}/messages", f"/api/admin/tenants/{blue}",
        f"/api/admin/tenants/{blue}/sessions", f"/api/admin/sessions/{session}", "/api/admin/tasks",
        "/api/admin/dead-letters", f"/api/admin/dead-letters?tenant_id={blue}", "/api/events",
        f"/ws/{session}", f"/ws/{blue}/{session}", "/debug", "/env", "/.env", "/api/admin",
        "/metrics/../ws/stats",
    ]  # fmt: skip
    for target in targets:
        yield _get(siege, f"{target} as blue", target, token, ("X-Tenant-ID", blue))
        asked = f"{target}{'&' if '?' in target else '?'}tenant_id={blue}"
        own = target.startswith("/api/chat/sessions")  # red's own, if there is such an address
        yield _get(siege, f"{target} of blue", asked, token, fair=own)
    for target in (f"/api/chat/tasks/{task}/cancel", "/api/chat/cancel"):
        for headers in ((), (("X-Tenant-ID", blue),)):
            yield _post(
                siege, target, token, {"task_id": task, "tenant_id": blue, "session_id": session}, *headers
            )
    for target in (
        f"/api/chat/sessions/{session}",
        f"/api/chat/tasks/{task}",
        f"/api/admin/sessions/{session}",
    ):
        yield _ask(siege, target, "DELETE", target, token, {"tenant_id": blue})
    for body in ({"tenant_id": blue}, {"session_id": session, "tenant_id": blue}, {"tenant_id": "*"}):
        content = {"topic": "orders", "payload": {"from": "red"}, "message": "from red", **body}
        yield _post(siege, "/api/broadcast", token, content, ("X-Tenant-ID", blue))


def _post(siege: Siege, target: str, token: str, body: dict[str, Any], *headers: tuple[str, str]) -> Attempt:
    async def act() -> Answer:
        asks = (*bearer(token), *headers)
        return await ask(siege.pod().port, "POST", target, asks, json.dumps(body).encode())

    return Attempt(f"POST {target} {' '.join(body)}", act)


async def admin_over_tenant(siege: Siege) -> None:
    """Red's administrator governs blue: lists, closes, revokes, lifts, reads and sets limits."""
    tokens = {
        "red's administrator": siege.mint.token(siege.as_admin_of_red()),
        "an administrator among red's users": siege.mint.token(siege.as_mallory(scope=ALL_SCOPES)),
    }
    for attempts_of in (_listings, _orders):
        await siege.run(
            [attempt for name, token in tokens.items() for attempt in attempts_of(siege, name, token)]
        )


def _listings(siege: Siege, name: str, token: str) -> Iterator[Attempt]:
    blue, red = siege.blue, siege.red
    for tenant in (
        blue,
        "*",
        blue.upper(),
        f"{red},{blue}",
        f"{red}%2C{blue}",
        f"{red}%00{blue}",
        "%2A",
        f"{red}*",
    ):
        for path in ("/api/admin/connections", "/api/admin/revocations", "/ws/stats"):
            yield _get(siege, f"{path} of {tenant} as {name}", f"{path}?tenant_id={tenant}", token)
        yield _get(
            siege, f"limits of {tenant} as {name}", f"/api/admin/tenants/{quote(tenant)}/limits", token
        )
    for path in ("/api/admin/connections", "/api/admin/revocations", "/ws/stats"):
        for query in (f"tenant_id={red}&tenant_id={blue}", f"tenant_id={blue}&tenant_id={red}"):
            yield _get(siege, f"{path} of two tenants as {name}", f"{path}?{query}", token)
    yield _get(siege, f"/api/chat/stats as {name}", "/api/chat/stats", token)
    yield _get(siege, f"/api/chat/stats of red as {name}", f"/api/chat/stats?tenant_id={red}", token)
    # Of its own tenant it may ask for anything, and is told nothing of blue's.
    connection = siege.connection_id
    for query in (
        "",
        f"session_id={siege.session}",
        f"user_id={siege.ann}",
        f"connection_id={connection}",
        "limit=1000",
    ):
        target = f"/api/admin/connections?{query}"
        yield _get(siege, f"red's connections {query[:12]} as {name}", target, token, fair=True)
    yield _get(siege, f"red's revocations as {name}", "/api/admin/revocations", token, fair=True)
    yield _get(siege, f"red's counts as {name}", "/ws/stats", token, fair=True)
    yield _get(siege, f"health as {name}", "/health/detailed", token, fair=True)
    for limit in ("0", "-1", "1001", "1e3", "", "x", "0" * 8 + "11001", "0" * 8 + "1" * 4400):
        yield _get(siege, f"limit={limit[:12]} as {name}", f"/api/admin/connections?limit={limit}", token)


def _orders(siege: Siege, name: str, token: str) -> Iterator[Attempt]:
    blue, red, session = siege.blue, siege.red, siege.session
    close, revoke = "/api/admin/connections/close", "/api/admin/revocations"
    connection = siege.connection_id
    whose: list[dict[str, Any]] = [
        {"tenant_id": blue},
        {"tenant_id": blue, "session_id": session},
        {"tenant_id": blue, "user_id": siege.ann},
        {"tenant_id": blue, "connection_id": connection},
        {"tenant_id": blue, "session_id": session, "reconnect": False},
        {"tenant_id": "*"},
        {"tenant_id": "*", "user_id": siege.ann},
        {"tenant_id": f"{red},{blue}"},
        {"tenant_id": blue.upper()},
    ]
    for body in whose:
        yield _ask(siege, f"close {' '.join(body)} as {name}", "POST", close, token, body)
    for body in (*whose[:3], {"tenant_id": blue, "token_id": "x"}, {"tenant_id": "*", "user_id": "x"}):
        yield _ask(siege, f"revoke {' '.join(body)} as {name}", "POST", revoke, token, body)
    for query in (
        f"tenant_id={blue}",
        f"tenant_id={blue}&user_id={siege.ann}",
        f"tenant_id={blue}&token_id=x",
    ):
        yield _ask(siege, f"lift {query} as {name}", "DELETE", f"{revoke}?{query}", token, {})
    for tenant in (blue, red, "*", blue.upper()):
        limits = {"sends_per_minute": 1, "connections": 1}
        yield _ask(
            siege,
            f"set limits of {tenant} as {name}",
            "PUT",
            f"/api/admin/tenants/{tenant}/limits",
            token,
            limits,
        )
    yield _ask(siege, f"close red's and blue's as {name}", "POST", close, token,
               f'{{"tenant_id":"{red}","tenant_id":"{blue}","session_id":"{session}"}}'.encode())  # fmt: skip
    # Orders for its own tenant that name what is blue's: granted, and nothing comes of it.
    for body in (
        {"session_id": session},
        {"user_id": siege.ann},
        {"connection_id": connection},
        {"session_id": siege.common},
    ):
        yield _ask(
            siege, f"close red's own {' '.join(body)} as {name}", "POST", close, token, body, fair=True
        )
    for body in ({"user_id": siege.ann}, {"token_id": siege.token_id}):
        yield _ask(
            siege, f"revoke red's own {' '.join(body)} as {name}", "POST", revoke, token, body, fair=True
        )
    # Names that end a line, where somebody might take a line for an entry.
    for odd in ("x\ny", "x\r\ny", "x y", "\n", "a\0b", "x\n{}", "-x", "+x", "\u202ex", "x\ud83d\ude00"):
        for field in ("token_id", "user_id"):
            yield _ask(
                siege, f"revoke {field} {odd!r} as {name}", "POST", revoke, token, {field: odd}, fair=True
            )
    for number in (-1e308, 1e308, 0, -1, 1e18):
        body = {"token_id": "x", "issued_before": number}
        yield _ask(siege, f"revoke before {number} as {name}", "POST", revoke, token, body, fair=True)
