"""The class of those who give a stream of their own a place in another's, or another's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from urllib.parse import quote

from tests.support.adversary.doors import posted
from tests.support.adversary.siege import Siege
from tests.support.adversary.streams import stream, ways
from tests.support.adversary.tally import Attempt
from tests.support.adversary.wire import ask, bearer
from tests.support.adversary.work import KINDS


async def event_positions(siege: Siege) -> None:
    """Streams of red's own, from where blue's stand or nobody stands; and messages in ann's words."""
    await siege.run([*_positions(siege), *_names_in_bodies(siege)])


def _positions(siege: Siege) -> Iterator[Attempt]:
    """Red's own sessions of the same names, from where blue's stand, and from where nobody stands."""
    token = siege.mint.token(siege.as_mallory())
    epoch, _, seq = siege.cursor.partition(":")
    task = siege.victims.work.tasks["going"]
    group = f"{task}*1*5.1o.12345678*0.0.00000000*1"
    lasts = [
        siege.cursor, f"{epoch}:0", f"{epoch}:1", f"{epoch}:{2**53}", f"{epoch}:9999999999999999",
        f"{epoch}:-1", f"{epoch.upper()}:{seq}", f"{epoch}:{10**30}", f"{epoch}:1*1", f"{epoch}:1*9999",
        f"{epoch}:1*0", "a:0",
        "", ":", "0:0", f"{epoch}:1!{group}", f"{epoch}:9999999999999999*9999!{group}",
        f"{epoch}:1!{group}!{group}",
        f"{epoch}:1!{task}*9999999999*9999999999.9999o.ffffffff*9999999999.9999o.ffffffff*9999999999999999",
        *(f"{epoch}:1" + "".join(f"!{n}{group[1:]}" for n in range(most)) for most in (4, 5)),
        f"{epoch}:1!*1*0.0.00000000*0.0.00000000*0", f"{epoch}:1!{group}x", f"{epoch}:1!", "!", "*", "$", "+",
        "-", "(",
        f"{siege.blue}:1", "\u0661:1", "\u0661", "a:\u0661", "x" * 2000, "null", "0", "-1", "\t", "a:1\tb:2",
    ]  # fmt: skip
    haves = [
        f"{task}:1:0:0", f"{task}:1:5:0", f"{task}:9999999999999999:9999999999:9999999999", f"{task}:0:0:0",
        f"{task}:1:-1:0", f"{task}:1", ",", "",
        ",".join([f"{task}:1:0:0"] * 8), ",".join([f"{task}:1:0:0"] * 9),
        f"{siege.blue}/{task}:1:0:0", "*:1:0:0", f"{task}:1:0:0,", "\u0661:1:1:1",
    ]  # fmt: skip
    for session in (siege.session, siege.work, siege.common):
        for way in list(ways(session))[:4]:
            name = f"of red's own {session[0]}"
            for last in lasts:
                if last.isascii():
                    header = ("Last-Event-ID", last)
                    yield stream(siege, f"{name}, last {last[:60]!r}", way, token, header, fair=True)
                for where in ("cursor", "last_event_id"):
                    more = f"{where}={quote(last, safe='')}"
                    yield stream(siege, f"{name}, {more[:60]}", way, token, more=more, fair=True)
            for have in haves:
                more = f"have={quote(have, safe='')}"
                yield stream(siege, f"{name}, {more[:60]}", way, token, more=more, fair=True)
            yield stream(
                siege,
                f"{name}, two positions",
                way,
                token,
                ("Last-Event-ID", siege.cursor),
                ("Last-Event-ID", "a:0"),
            )
            more = f"cursor={siege.cursor}&last_event_id=a:0"
            yield stream(siege, f"{name}, two other positions", way, token, more=more)


def _names_in_bodies(siege: Siege) -> Iterator[Attempt]:
    """Messages to the attackers' own sessions that call themselves ann's: they arrive as the attackers'."""
    mallory, mal = siege.mint.token(siege.as_mallory()), siege.mint.token(siege.as_mal())
    names = (
        siege.session,
        siege.work,
        f"{siege.blue}:{siege.work}",
        siege.victims.work.tasks["asking"],
        "x" * 5000,
    )
    for said in (*names, *siege.victims.work.names.values()):
        mine = f"mine-{siege.word()}"
        whose = (
            ("mallory", mallory, siege.own, siege.message(siege.red, siege.own, siege.mallory)),
            ("mal", mal, mine, siege.message(siege.blue, mine, siege.mal)),
        )
        for who, token, session, note in whose:
            for way in list(ways(session))[4:]:
                name = f"called {said[:20]} as {who}"
                yield stream(siege, name, way, token, note=note, said=said, fair=True)
                as_ann = _said_by_ann(siege, way.format, note, said)
                target = f"{way.path}?{way.query}"
                asks = (*bearer(token), ("X-Agent-ID", "agent-1"))
                act = partial(ask, siege.pod().port, "POST", target, asks, as_ann)
                yield Attempt(f"stream {way.name} {name}, with ann's message", act, fair=True)


def _said_by_ann(siege: Siege, kind: str, note: str, said: str) -> bytes:
    """A conversation that is said to hold ann's messages and tasks, and to be hers."""
    work = siege.victims.work
    body = json.loads(posted(kind, note, work.names["waiting"], said))
    last = body["messages"].pop()
    earlier = [
        {"id": work.tasks[kind_of], "role": role, "content": "?", "parts": [{"type": "text", "text": "?"}]}
        for kind_of in KINDS
        for role in ("user", "assistant")
    ]
    body["messages"] = [*earlier, last]
    whose = {
        "tenant_id": siege.blue,
        "session_id": work.session,
        "user_id": siege.ann,
        "task_id": work.tasks["going"],
    }
    more = {"state": whose, "context": [], "tools": [], "forwardedProps": whose, "metadata": whose}
    return json.dumps({**body, **whose, **more, "id": said}).encode()
