"""The class of those who publish events where they must not: to another tenant, or beyond their token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.topics import may_be, odd_topics
from tests.support.adversary.victims import FREE_TOPIC
from tests.support.adversary.wire import Answer, ask, bearer
from tests.support.adversary.work import AGENT

_TARGET = "/api/broadcast"


async def broadcasts(siege: Siege) -> None:
    """Nothing that red publishes reaches blue, and nobody publishes what his token does not allow."""
    await siege.run(
        [*_without_scope(siege), *_as_blue(siege), *_as_red(siege), *_with_less(siege), *_odd(siege)]
    )


def _everybody(siege: Siege) -> list[dict[str, Any]]:
    """To whom of blue's an event might go."""
    return [
        {"tenant": True},
        {"tier": "enterprise"},
        {"agent_id": AGENT},
        *({"topic": topic} for topic in siege.victims.topics),
        *({"session_id": session} for session in (siege.session, siege.common, siege.work)),
    ]


def _attempt(
    siege: Siege, name: str, token: str, said: Any, *headers: tuple[str, str], fair: bool = False
) -> Attempt:
    """An event that says from which attempt it is."""
    if isinstance(said, dict):
        said = {"payload": {"by": name}, **said}
    content = said if isinstance(said, bytes) else json.dumps(said).encode()

    async def act() -> Answer:
        return await ask(siege.pod().port, "POST", _TARGET, (*bearer(token), *headers), content)

    return Attempt(f"broadcast {name}", act, fair)


def _without_scope(siege: Siege) -> Iterator[Attempt]:
    """Blue's own, who may not."""
    for scope in ("chat listen", "chat listen stats admin", "Broadcast", "broadcasts", "", "*"):
        for claims in (
            siege.as_mal(scope=scope),
            siege.as_ann(scope=scope),
            siege.as_mal(scope=scope, sub=...),
        ):
            token = siege.mint.token(claims)
            for to in _everybody(siege):
                yield _attempt(siege, f"to {to} with the scopes {scope!r}", token, {"to": to})


def _as_blue(siege: Siege) -> Iterator[Attempt]:
    """Red's, with the scope, who say that they are blue's."""
    red, blue = siege.red, siege.blue
    tokens = {
        "mallory": siege.mint.token(siege.as_mallory(scope=ALL_SCOPES)),
        "red's administrator": siege.mint.token(siege.as_admin_of_red()),
    }
    for who, token in tokens.items():
        for tenant in (
            blue,
            "*",
            "",
            f"{red},{blue}",
            blue.upper(),
            f"{red}.",
            f"{red}\0{blue}",
            [blue],
            True,
        ):
            for to in _everybody(siege):
                said = {"to": to, "tenant_id": tenant}
                yield _attempt(siege, f"to {to} of {tenant!r} as {who}", token, said)
                if isinstance(tenant, str) and "\0" not in tenant and tenant:
                    header = ("X-Tenant-ID", tenant)
                    yield _attempt(siege, f"to {to}, header {tenant!r}, as {who}", token, {"to": to}, header)
        for to in _everybody(siege):
            twice = json.dumps({"to": to, "payload": {"by": f"twice to {to}"}, "tenant_id": red})
            raw = f'{twice[:-1]}, "tenant_id": "{blue}"}}'.encode()
            yield _attempt(siege, f"to {to} of two tenants as {who}", token, raw)
            yield _attempt(siege, f"to {to} with blue's name in it", token, {"to": {**to, "tenant_id": blue}})
            headers = (("X-Tenant-ID", red), ("X-Tenant-ID", blue))
            yield _attempt(siege, f"to {to}, two headers", token, {"to": to}, *headers)


def _as_red(siege: Siege) -> Iterator[Attempt]:
    """Red's to its own of the same names: granted, and blue hears nothing of it."""
    token = siege.mint.token(siege.as_mallory(scope=ALL_SCOPES))
    for to in _everybody(siege):
        yield _attempt(siege, f"to red's own {to}", token, {"to": to}, fair=True)
        said = {"to": to, "tenant_id": siege.red}
        yield _attempt(
            siege, f"to red's own {to}, by name", token, said, ("X-Tenant-ID", siege.blue), fair=True
        )
    for topic in odd_topics(siege):
        fair = may_be(topic) or topic.startswith("task:")
        yield _attempt(siege, f"to the topic {topic[:60]!r}", token, {"to": {"topic": topic}}, fair=fair)


def _with_less(siege: Siege) -> Iterator[Attempt]:
    """Blue's other user, whose token names sessions, agents and topics."""
    less = {"topics": ["mine/*"], "agents": ["sales"], "session_id": "mine-*", "scope": "broadcast"}
    token = siege.mint.token(siege.as_mal(**less))
    wanted: list[dict[str, Any]] = [
        {"agent_id": AGENT}, {"topic": f"agent:{AGENT}"}, {"topic": FREE_TOPIC}, {"topic": "mine"},
        {"session_id": siege.work}, {"session_id": siege.common}, {"session_id": "mine"},
        {"session_id": "mine-*"}, {"agent_id": "sales-1"}, {"agent_id": "*"},
    ]  # fmt: skip
    for to in wanted:
        yield _attempt(siege, f"to {to} with less", token, {"to": to})
    own: list[dict[str, Any]] = [{"agent_id": "sales"}, {"topic": "mine/x"}, {"session_id": "mine-1"}]
    for to in own:
        name = f"to {to}, which is allowed"
        yield Attempt(name, partial(_must, siege, name, _attempt(siege, name, token, {"to": to})), fair=True)


async def _must(siege: Siege, name: str, attempt: Attempt) -> Answer:
    answer = await attempt.act()
    if not answer.accepted:
        siege.tally.crashed.add(f"{name} is refused: {answer.codes}")
    return answer


def _odd(siege: Siege) -> Iterator[Attempt]:
    """Bodies that can be read in two ways, or not at all."""
    token = siege.mint.token(siege.as_mallory(scope=ALL_SCOPES))
    session = siege.work
    wrong: list[Any] = [
        {"to": {}}, {"to": None}, {"to": []}, {"to": [{"tenant": True}]}, {"to": "tenant"}, {}, [], None, 7,
        {"to": {"tenant": True, "session_id": session}}, {"to": {"topic": "a", "agent_id": "b"}},
        {"to": {"tenant": False}}, {"to": {"tenant": 1}}, {"to": {"tenant": "true"}},
        {"to": {"tier": "gold"}}, {"to": {"tier": "*"}}, {"to": {"tier": ["free"]}},
        {"to": {"tenants": True}}, {"to": {"user_id": "x"}},
        {"to": {"tenant": True}, "topic": "x"}, {"to": {"topic": None}}, b"", b"{", b"\xff", b"nope",
        b'{"to": {"tenant": true}, "payload": }', b'{"to": {"tenant": true}, "payload": NaN}',
        b'{"to": {"tenant": true}, "payload": "\xff"}', b'{"to": {"tenant": true}, "payload": ' + b"[" * 5000,
        b'{"to": {"tenant": true}}', b'{"to": {"tenant": true}, "payload": 1} x',
    ]  # fmt: skip
    odd: Any
    for name in ("session_id", "agent_id"):
        begin = session if name == "session_id" else AGENT
        for odd in (
            f"{siege.blue}:{begin}", f"../{begin}", f"{begin}\n", f"{begin}/x", "*", "", "a b", "\u202e",
            "\ud800", "x" * 129, 7, [begin], {},
        ):  # fmt: skip
            wrong.append({"to": {name: odd}})
    for number, said in enumerate(wrong):
        yield _attempt(siege, f"odd {number} {str(said)[:60]}", token, said)
