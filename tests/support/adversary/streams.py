"""The class of those who ask for the event streams of others, in every format and with all sorts of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.adversary.doors import events_of, posted
from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import by_hmac
from tests.support.adversary.wire import Answer, ask, bearer
from tests.support.adversary.work import KINDS

Header = tuple[str, str]
FORMATS = ("ag-ui", "ai-sdk")


class Way(NamedTuple):
    """A way to ask for a session's stream."""

    name: str
    method: str
    path: str
    query: str = ""
    format: str = ""


def ways(session: str) -> Iterator[Way]:
    """All the ways to ask for a stream of a session."""
    path = events_of(session)
    yield Way("native", "GET", path, "stream=1")
    yield Way("for AG-UI", "GET", path, "format=ag-ui")
    yield Way("for the AI SDK", "GET", path, "format=ai-sdk")
    yield Way("again for the AI SDK", "GET", f"{path}/chat-1/stream")
    for kind in FORMATS:
        yield Way(f"a message by {kind}", "POST", path, f"format={kind}", kind)


async def event_streams(siege: Siege) -> None:
    """Streams of blue's sessions and tasks, for its other users, for red, and for tokens in odd places."""
    await _right_way(siege)
    await siege.run([*_colleagues(siege), *_as_blue(siege)])
    await siege.run([*_places(siege), *_tasks(siege)])


def stream(
    siege: Siege,
    name: str,
    way: Way,
    token: str | None,
    *headers: Header,
    more: str = "",
    note: str | None = None,
    said: str = "thread",
    fair: bool = False,
) -> Attempt:
    """Ask for a stream in one of the ways.

    Args:
        more: of the query.
        note: what is posted; else what may arrive nowhere.
        said: what the conversation is called in what is posted.
    """

    async def act() -> Answer:
        query = "&".join(part for part in (way.query, more) if part)
        target = f"{way.path}?{query}" if query else way.path
        asks: tuple[Header, ...] = (*bearer(token), *headers)
        if way.method == "GET":
            return await ask(siege.pod().port, "GET", target, asks)
        if all(one.lower() != "x-agent-id" for one, _ in asks):
            asks = (*asks, ("X-Agent-ID", "agent-1"))
        body = posted(way.format, note or siege.message(), siege.word(), said)
        return await ask(siege.pod().port, "POST", target, asks, body)

    return Attempt(f"stream {way.name} {name}", act, fair)


async def _right_way(siege: Siege) -> None:
    """Ann and each way: she is let in, and told what nobody else may be."""
    session = siege.work
    token = siege.mint.token(siege.as_ann(session_id=session))
    known = {text.encode() for _, text in siege.victims.work.told}
    for way in ways(session):
        if way.method == "POST":
            continue  # it is one of the doors
        cursor = ("Last-Event-ID", "a:0")
        answer = await stream(siege, "as ann", way, token, cursor).act()
        if not (answer.accepted and any(text in answer.received for text in known)):
            siege.tally.crashed.add(f"{way.name} tells ann nothing")


def _colleagues(siege: Siege) -> Iterator[Attempt]:
    """Blue's other users at ann's sessions."""
    people = {
        "mal": siege.as_mal(),
        "mal with all scopes": siege.as_mal(scope=ALL_SCOPES),
        "mal for this session": siege.as_mal(session_id=[siege.session, siege.work]),
        "ann in capitals": siege.as_mal(sub=siege.ann.upper()),
        "almost ann": siege.as_mal(sub=siege.ann[:-1]),
        "nobody": siege.as_nobody(),
        "ann for another session": siege.as_ann(session_id="another"),
    }
    task = siege.victims.work.tasks["going"]
    for who, claims in people.items():
        token = siege.mint.token(claims)
        for session in (siege.session, siege.work):
            for way in ways(session):
                for more in ("", f"cursor={quote(siege.cursor)}", f"task_id={task}", f"have={task}:1:0:0"):
                    name = f"of {session[0]} as {who}, {more}"
                    yield stream(siege, name, way, token, more=more)
                # Whoever says that he is ann contradicts his token, in whatever way he says it.
                yield stream(
                    siege, f"of {session[0]} as {who}, saying ann", way, token, ("X-User-ID", siege.ann)
                )
                yield stream(
                    siege, f"of {session[0]} as {who}, asking ann", way, token, more=f"user_id={siege.ann}"
                )


def _as_blue(siege: Siege) -> Iterator[Attempt]:
    """Red's, who say that they are blue's."""
    tokens = {
        "mallory": siege.mint.token(siege.as_mallory(scope=ALL_SCOPES)),
        "red's administrator": siege.mint.token(siege.as_admin_of_red()),
        "an operator": siege.mint.token(siege.as_operator()),
    }
    said: tuple[tuple[Sequence[Header], str], ...] = (
        ((("X-Tenant-ID", siege.blue),), ""),
        ((), f"tenant_id={siege.blue}"),
        ((("X-Tenant-ID", siege.red),), f"tenant_id={siege.blue}"),
        ((("X-Tenant-ID", siege.blue),), f"tenant_id={siege.red}"),
        ((("X-Tenant-ID", siege.red), ("X-Tenant-ID", siege.blue)), ""),
        ((), f"tenant_id={siege.red}&tenant_id={siege.blue}"),
        ((), f"tenant_id={siege.red}&tenant%5Fid={siege.blue}"),
        ((("X-Tenant-ID", f"{siege.red}, {siege.blue}"),), ""),
        ((("X-Tenant-ID", "*"),), ""),
        ((("X-Tenant-Tier", "free"),), ""),
        ((), "tenant_tier=free"),
    )
    for who, token in tokens.items():
        for session in (siege.session, siege.work):
            for way in ways(session):
                for headers, more in said:
                    name = f"of {session[0]} as {who}, saying {headers} {more}"
                    yield stream(siege, name, way, token, *headers, more=more)
    token = tokens["mallory"]
    for session in (
        f"{siege.blue}:{siege.work}",
        f"../{siege.blue}/{siege.work}",
        f"{siege.work}\n",
        "*",
        "",
    ):
        for way in ways(session):
            yield stream(siege, f"of {session!r}", way, token)


def _places(siege: Siege) -> Iterator[Attempt]:
    """Ann's right token where no token is looked for, two of them, and none; forged ones are at the doors."""
    claims = siege.as_ann(session_id=siege.work)
    good, other = siege.mint.token(claims), siege.mint.token(siege.as_ann(session_id=siege.work))
    bad = siege.mint.token(claims, by_hmac(b"x" * 32))
    right = ("Authorization", f"Bearer {good}")
    cases: tuple[tuple[str, Sequence[Header], str], ...] = (
        ("nowhere", (), ""),
        ("in a subprotocol", (("Sec-WebSocket-Protocol", f"orchestrator.v1, bearer.{good}"),), ""),
        ("in a cookie", (("Cookie", f"token={good}; Authorization=Bearer {good}"),), ""),
        ("in X-Authorization", (("X-Authorization", f"Bearer {good}"),), ""),
        ("in Proxy-Authorization", (("Proxy-Authorization", f"Bearer {good}"),), ""),
        ("in Last-Event-ID", (("Last-Event-ID", good),), ""),
        ("in the scheme Token", (("Authorization", f"Token {good}"),), ""),
        ("without a scheme", (("Authorization", good),), ""),
        ("as access_token", (), f"access_token={good}"),
        ("as Token", (), f"Token={good}"),
        ("as bearer", (), f"bearer={good}"),
        ("as authorization", (), f"authorization=Bearer%20{good}"),
        ("as token[]", (), f"token[]={good}"),
        ("behind a fragment", (), f"x#token={good}"),
        ("in the query of a query", (), f"x?token={good}"),
        ("with a scheme in the query", (), f"token=Bearer%20{good}"),
        ("with a space in the query", (), f"token=%20{good}"),
        ("in header, forged in query", (right,), f"token={bad}"),
        ("in query, forged in header", (("Authorization", f"Bearer {bad}"),), f"token={good}"),
        ("in header, another right one in query", (right,), f"token={other}"),
        ("in header, an empty one in query", (right,), "token="),
        ("twice in the query", (), f"token={good}&token={good}"),
        ("and a forged one in the query", (), f"token={good}&token={bad}"),
        ("and a forged one, escaped, in the query", (), f"token={good}&to%6Ben={bad}"),
        ("behind a forged one in the query", (), f"token={bad}&token={good}"),
        ("in two headers", (right, ("authorization", f"Bearer {bad}")), ""),
        ("in two headers, the second", (("Authorization", f"Bearer {bad}"), right), ""),
        ("in a list", (("Authorization", f"Bearer {good}, Bearer {bad}"),), ""),
        ("in a list, the second", (("Authorization", f"Bearer {bad}, Bearer {good}"),), ""),
    )
    for way in ways(siege.work):
        for name, headers, more in cases:
            yield stream(siege, f"with a token {name}", way, None, *headers, more=more)
    for kind in FORMATS:
        body = json.loads(posted(kind, siege.message(), siege.word()))
        body |= {"token": good, "authorization": f"Bearer {good}", "forwardedProps": {"token": good}}
        target = f"{events_of(siege.work)}?format={kind}"
        content = json.dumps(body).encode()
        act = partial(ask, siege.pod().port, "POST", target, [("X-Agent-ID", "agent-1")], content)
        yield Attempt(f"stream with a token in the body of {kind}", act)


def _tasks(siege: Siege) -> Iterator[Attempt]:
    """Single tasks of ann's, by id, in sessions of the attackers' own."""
    people = {"mallory": siege.mint.token(siege.as_mallory()), "mal": siege.mint.token(siege.as_mal())}
    none = siege.mint.id()
    for who, token in people.items():
        for way in list(ways(f"mine-{siege.word()}"))[1:4]:
            for kind in KINDS:
                task = siege.victims.work.tasks[kind]
                more = f"task_id={task}"
                there, other = (
                    stream(siege, f"of the {kind} task as {who}", way, token, more=f"task_id={one}")
                    for one in (task, none)
                )
                act = partial(_compared, siege, there.name, there.act, other.act, task, none)
                yield Attempt(there.name, act)
                for last in (
                    f"a:0!{task}*1*0.0.00000000*0.0.00000000*0",
                    f"{siege.cursor}!{task}*1*5.1o.12345678*0.0.00000000*1",
                ):
                    header = ("Last-Event-ID", last)
                    # It says what it was told, and gets what its own session has: nothing.
                    yield stream(
                        siege, f"of the {kind} task as {who}, {last[-40:]}", way, token, header, fair=True
                    )
                    yield stream(
                        siege, f"of the {kind} task as {who}, twice", way, token, header, more=more, fair=True
                    )


async def _compared(
    siege: Siege, name: str, act: Callable[[], Any], again: Callable[[], Any], task: str, none: str
) -> Answer:
    there: Answer = await act()
    other: Answer = await again()
    plain = [
        answer.received.partition(b"\r\n\r\n")[2].replace(one.encode(), b"ID")
        for answer, one in ((there, task), (other, none))
    ]
    if plain[0] != plain[1] or there.codes != ["unknown_task"]:
        siege.tally.leaked.add(f"{name}: told {there.codes} of a task that is there, else {other.codes}")
    return there
