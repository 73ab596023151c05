"""The class of ids with characters that no id may have, in every place where one is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.wire import Answer, ask, bearer, knock

NASTY = (
    *"\0\r\n\t \x7f",
    *"\"'`\\/%#?&;:,*{}[]()<>|^$=!",
    "\u00e9",
    "\u202e",  # turns the rest of a log line round
)
_EVENTS = b"/api/chat/sessions/q/events?"
_KEY = re.compile(r"[A-Za-z0-9._~@+:{}-]*")
# Not a character of an id there, but the end of it or nothing: what is left may be a right id.
_ENDS_A_PATH, _ENDS_A_VALUE = frozenset("?#/ \t\r\n\0"), frozenset("&#+ \t\r\n\0;")
_AROUND_A_HEADER, _IN_A_HEADER = frozenset(" \t\r\n"), frozenset("\r\n")


async def odd_ids(siege: Siege) -> None:
    """Every nasty character at the start, in the middle and at the end of every id, as it is and escaped."""
    before = set(siege.names_in_store())
    await siege.run(
        [*_in_paths(siege), *_in_queries(siege), *_in_headers(siege), *_in_json(siege), *_in_claims(siege)]
    )
    odd = [key for key in siege.names_in_store() if key not in before and _KEY.fullmatch(key) is None]
    siege.tally.got_in |= {f"the key {key!r}" for key in odd}


def _spelt(siege: Siege) -> Iterator[tuple[str, str, str]]:
    """Each id, with its character and where that stands."""
    for char in NASTY:
        for where in ("start", "middle", "end"):
            begin, end = f"n{siege.random.randrange(10**6)}", "zz"
            yield (
                {"start": f"{char}{begin}", "middle": f"{begin}{char}{end}", "end": f"{begin}{char}"}[where],
                char,
                where,
            )


def _name(place: str, char: str, where: str, form: str) -> str:
    return f"{char!a} at the {where} of {place}, {form}"


def _in_paths(siege: Siege) -> Iterator[Attempt]:
    """Sessions, tenants and tasks in addresses."""
    user, operator = siege.mint.token(siege.as_mallory()), siege.mint.token(siege.as_operator())
    places: dict[str, Callable[[bytes], Attempt]] = {
        "the path of a socket": lambda raw: _socket(siege, b"/ws/" + raw, user),
        "the path of messages": lambda raw: _get(siege, b"/api/chat/sessions/" + raw + b"/messages", user),
        "the path of limits": lambda raw: _get(siege, b"/api/admin/tenants/" + raw + b"/limits", operator),
        "the path of a task": lambda raw: _get(siege, b"/api/chat/tasks/" + raw, user),
        "the path of a cancel": lambda raw: _post_raw(siege, b"/api/chat/tasks/" + raw + b"/cancel", user),
        "the path of events": lambda raw: _get(siege, b"/api/chat/sessions/" + raw + b"/events", user),
        "the path of a chat": lambda raw: _get(
            siege, b"/api/chat/sessions/" + raw + b"/events/c/stream", user
        ),
    }
    for place, use in places.items():
        for text, char, where in _spelt(siege):
            raw = use(text.encode())
            yield raw._replace(name=_name(place, char, where, "raw"), fair=char in _ENDS_A_PATH)
            yield use(quote(text, safe="").encode())._replace(name=_name(place, char, where, "escaped"))


def _in_queries(siege: Siege) -> Iterator[Attempt]:
    """Ids in queries."""
    nobody = siege.mint.token(siege.as_mallory(sub=...))
    operator, admin = siege.mint.token(siege.as_operator()), siege.mint.token(siege.as_admin_of_red())
    places: dict[str, Callable[[bytes], Attempt]] = {
        "a socket's tenant_id": lambda raw: _socket(siege, b"/ws/q?tenant_id=" + raw, nobody),
        "a socket's user_id": lambda raw: _socket(siege, b"/ws/q?user_id=" + raw, nobody),
        "a socket's agent_id": lambda raw: _socket(siege, b"/ws/q?agent_id=" + raw, nobody),
        "a socket's cursor": lambda raw: _socket(siege, b"/ws/q?cursor=" + raw, nobody),
        "messages' cursor": lambda raw: _get(siege, b"/api/chat/sessions/q/messages?cursor=" + raw, nobody),
        "events' tenant_id": lambda raw: _get(siege, _EVENTS + b"tenant_id=" + raw, nobody),
        "events' user_id": lambda raw: _get(siege, _EVENTS + b"user_id=" + raw, nobody),
        "events' agent_id": lambda raw: _get(siege, _EVENTS + b"agent_id=" + raw, nobody),
        "events' cursor": lambda raw: _get(siege, _EVENTS + b"cursor=" + raw, nobody),
        "events' task_id": lambda raw: _get(siege, _EVENTS + b"format=ag-ui&task_id=" + raw, nobody),
        "events' have": lambda raw: _get(siege, _EVENTS + b"stream=1&have=" + raw + b":1:0:0", nobody),
        "stats' tenant_id": lambda raw: _get(siege, b"/ws/stats?tenant_id=" + raw, operator),
        "connections' tenant_id": lambda raw: _get(
            siege, b"/api/admin/connections?tenant_id=" + raw, operator
        ),
        "connections' session_id": lambda raw: _get(
            siege, b"/api/admin/connections?session_id=" + raw, admin
        ),
        "connections' user_id": lambda raw: _get(siege, b"/api/admin/connections?user_id=" + raw, admin),
        "revocations' tenant_id": lambda raw: _get(
            siege, b"/api/admin/revocations?tenant_id=" + raw, operator
        ),
    }
    for place, use in places.items():
        for text, char, where in _spelt(siege):
            raw = use(text.encode())
            yield raw._replace(name=_name(place, char, where, "raw"), fair=char in _ENDS_A_VALUE)
            yield use(quote(text, safe="").encode())._replace(name=_name(place, char, where, "escaped"))


def _in_headers(siege: Siege) -> Iterator[Attempt]:
    """Ids in the headers of a send."""
    user, nobody = siege.mint.token(siege.as_mallory()), siege.mint.token(siege.as_mallory(sub=...))
    for header, token in (
        ("X-Tenant-ID", user),
        ("X-Session-ID", user),
        ("X-User-ID", nobody),
        ("X-Agent-ID", user),
        ("X-Conversation-ID", user),
        ("X-Collection-ID", user),
    ):
        for text, char, where in _spelt(siege):
            fair = char in (_IN_A_HEADER if where == "middle" else _AROUND_A_HEADER)
            act = _sending(siege, header, text, token)
            yield Attempt(_name(header, char, where, "raw"), act, fair)
            if char not in "%":
                act = _sending(siege, header, quote(text, safe=""), token)
                yield Attempt(_name(header, char, where, "escaped"), act)


def _sending(siege: Siege, header: str, text: str, token: str) -> Callable[[], Any]:
    async def act() -> Answer:
        usual = {
            "X-Session-ID": "h",
            "X-Agent-ID": "a",
            "X-Context-Type": "collection",
            "X-Collection-ID": "c",
        }
        headers = [*bearer(token), *{**usual, header: text}.items()]
        user = text.strip() if header == "X-User-ID" else siege.mallory
        body = json.dumps({"message": siege.message(siege.red, None, user)}).encode()
        return await ask(siege.pod().port, "POST", "/api/chat/send", headers, body)

    return act


def _in_json(siege: Siege) -> Iterator[Attempt]:
    """Ids in messages and bodies."""
    operator, admin = siege.mint.token(siege.as_operator()), siege.mint.token(siege.as_admin_of_red())
    close, revoke = "/api/admin/connections/close", "/api/admin/revocations"
    news, some = "/api/broadcast", {"payload": 1}
    to_all = {"to": {"tenant": True}, **some}
    answer = {"type": "input", "task_id": "t", "input_id": "i", "value": 1}
    places: dict[str, Callable[[str], Any]] = {
        "a chat's agent_id": lambda text: _chat(siege, text),
        "a cancel's task_id": lambda text: _saying(siege, {"type": "cancel", "task_id": text}),
        "an input's task_id": lambda text: _saying(siege, {**answer, "task_id": text}),
        "an input's input_id": lambda text: _saying(siege, {**answer, "input_id": text}),
        "a task's topic": lambda text: _saying(siege, {"type": "subscribe", "topics": [f"task:{text}"]}),
        "an agent's topic": lambda text: _saying(siege, {"type": "subscribe", "topics": [f"agent:{text}"]}),
        "a broadcast's session_id": lambda text: _post(
            siege, news, admin, {"to": {"session_id": text}, **some}
        ),
        "a broadcast's agent_id": lambda text: _post(siege, news, admin, {"to": {"agent_id": text}, **some}),
        "a broadcast's tenant_id": lambda text: _post(siege, news, operator, {**to_all, "tenant_id": text}),
        "close's tenant_id": lambda text: _post(siege, close, operator, {"tenant_id": text}),
        "close's session_id": lambda text: _post(siege, close, admin, {"session_id": text}),
        "close's user_id": lambda text: _post(siege, close, admin, {"user_id": text}),
        "close's connection_id": lambda text: _post(siege, close, admin, {"connection_id": text}),
        "revoke's tenant_id": lambda text: _post(
            siege, revoke, operator, {"tenant_id": text, "token_id": "x"}
        ),
        "revoke's user_id": lambda text: _post(siege, revoke, admin, {"user_id": text}),
    }
    for place, use in places.items():
        for text, char, where in _spelt(siege):
            yield Attempt(_name(place, char, where, "raw"), use(text))


def _in_claims(siege: Siege) -> Iterator[Attempt]:
    """Ids in tokens that are signed rightly: an issuer may let its users choose them."""
    for claim in ("tenant_id", "sub", "session_id", "agents"):
        for text, char, where in _spelt(siege):
            if claim in ("session_id", "agents") and char == "*" and where == "end":
                continue  # a pattern
            name = _name(f"the claim {claim}", char, where, "raw")
            yield Attempt(name, _showing(siege, claim, text))


def _showing(siege: Siege, claim: str, text: str) -> Callable[[], Any]:
    async def act() -> Answer:
        token = siege.mint.token(siege.as_mallory(**{claim: text}))
        return await siege.send(token, siege.message(), ("X-Session-ID", "h"))

    return act


def _socket(siege: Siege, target: bytes, token: str) -> Attempt:
    return Attempt("", lambda: knock(siege.pod().port, target, bearer(token)))


def _get(siege: Siege, target: bytes, token: str) -> Attempt:
    return Attempt("", lambda: ask(siege.pod().port, "GET", target, bearer(token)))


def _chat(siege: Siege, agent: str) -> Callable[[], Any]:
    async def act() -> Answer:
        note = siege.message()
        return await siege.spoken[siege.pod().port].say({"type": "chat", "message": note, "agent_id": agent})

    return act


def _saying(siege: Siege, message: dict[str, Any]) -> Callable[[], Any]:
    return lambda: siege.spoken[siege.pod().port].say(message)


def _post_raw(siege: Siege, target: bytes, token: str) -> Attempt:
    return Attempt("", lambda: ask(siege.pod().port, "POST", target, bearer(token), b""))


def _post(siege: Siege, target: str, token: str, body: dict[str, Any]) -> Callable[[], Any]:
    return lambda: ask(siege.pod().port, "POST", target, bearer(token), json.dumps(body).encode())
