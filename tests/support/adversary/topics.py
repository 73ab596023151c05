"""The class of those who subscribe to what is another's: his topics, and names that might stand for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import Claims
from tests.support.adversary.victims import FREE_TOPIC
from tests.support.adversary.wire import Answer, Talk, bearer, talk
from tests.support.adversary.work import AGENT

_TOPIC = re.compile(r"[A-Za-z0-9._~:/@+-]{1,128}")
_OWNED = re.compile(r"(task:|tenant:(?!announcements$)).*|agent:(?![A-Za-z0-9._~-]+$).*")
_SHARED = ("type:invoice", "tenant:announcements")


def may_be(topic: str) -> bool:
    """Whether a topic may be anybody's: then it is the own one of who names it, and no other's."""
    return _TOPIC.fullmatch(topic) is not None and _OWNED.fullmatch(topic) is None


def odd_topics(siege: Siege) -> Iterator[str]:
    """Wildcards, names of channels, ends of lines, and what else some reader might take for blue's topics."""
    task, list_of = siege.victims.work.tasks["going"], f"orchestrator:{siege.blue}:callbacks"
    for topic in (FREE_TOPIC, f"agent:{AGENT}", *_SHARED):
        yield from (
            topic, f"{topic}*", f"{topic[:-1]}?", f"{topic[:-1]}[!x]", f"{topic}\n", f"\n{topic}",
            f"{topic}\r\n", f"{topic}\0", f" {topic}", f"{topic} ", topic.upper(), f"{siege.blue}:{topic}",
            f"{siege.blue}/{topic}", f"topic:{topic}", f"{{{list_of}}}:topic:{topic}", f"}}:topic:{topic}",
            f"{list_of}}}:topic:{topic}", f"{list_of}:topic:{topic}", f"../{siege.blue}/{topic}", f"{topic}/",
            f"{topic},{topic}", f"{topic}\r\nSUBSCRIBE {topic}", f'{topic}","orders', f"/{topic}",
            f"{topic}%00",
        )  # fmt: skip
    yield from (
        "*", "?", "", ".", "..", "/", ":", "task:", "agent:", "tenant:", "type:", "task:*", "task:?",
        f"task:{task}", f"task:{task}*", f"task:{task[:8]}*", f"task:{task}\n", f"task:{task}:stream",
        f"task::{task}", f"task:{task}/", f"Task:{task}", f"task/{task}", f"task:{siege.blue}/{task}",
        f"tenant:{siege.blue}", f"tenant:{siege.blue}:announcements", "tenant:*", "tenant:announcements/x",
        f"session:{siege.work}", f"s:{siege.work}", siege.work, "x" * 128, "x" * 129, "x" * 10_000, "\u00f6",
        "orders/\uff17", "\u202eorders/7", "orders\u20447", "orders/7\ufeff", "\U0001f389", "{}",
        "{{", "}}", "{announcements}", "{control}", "%s", "$(id)", "a b", "[", "]", "\\", "|", "^", "!",
        "[a-z]*",
    )  # fmt: skip


async def topics(siege: Siege) -> None:
    """Red's and blue's other users subscribe, and blue publishes: what is not theirs they do not hear."""
    lines: list[tuple[str, Talk, Collection[str]]] = []
    await _as_red(siege)
    for pod in siege.pods:
        lines += [await _as_mal(siege, pod.port), await _with_less(siege, pod.port)]
    await siege.victims.publish()
    for name, socket, forbidden in lines:
        await socket.say({"type": "ping"})  # what was published has come
        heard = {str(event["data"]["topic"]) for event in socket.messages if event["type"] == "event"}
        if not set(_SHARED) <= heard:
            siege.tally.crashed.add(f"{name} does not hear what it may: {sorted(heard)}")
        if heard & set(forbidden):
            siege.tally.leaked.add(f"{name} hears of {sorted(heard & set(forbidden))}")


async def _as_red(siege: Siege) -> None:
    """All topics, one after the other, and with others; the sockets stay, and hear what is published."""
    token = siege.mint.token(siege.as_mallory())
    for pod in siege.pods:
        for session in (f"own-{siege.word()}", siege.work):
            socket = await talk(pod.port, f"/ws/{session}", bearer(token))
            siege.eavesdrop(socket)
            tries = [
                _subscribing(siege, socket, f"red on {pod.port}", [topic], fair=may_be(topic))
                for topic in odd_topics(siege)
            ]
            tries += [
                _subscribing(siege, socket, f"red on {pod.port}", ["fine", task], fair=False)
                for task in siege.victims.topics[:3]
            ]
            await siege.run(tries, at_once=8)
            await _has_only_what_may_be(siege, socket)


async def _has_only_what_may_be(siege: Siege, socket: Talk) -> None:
    """What was refused was refused as a whole, and what was granted is told as it was asked for."""
    answer = await socket.say({"type": "unsubscribe", "topics": ["nothing"]})
    if not answer.accepted:
        siege.tally.crashed.add("unsubscribe is refused")
    has = socket.messages[-1]["data"].get("topics", ())
    siege.tally.got_in |= {
        f"subscribed to {topic!r}" for topic in has if not may_be(topic) or topic == "fine"
    }


async def _as_mal(siege: Siege, port: int) -> tuple[str, Talk, Collection[str]]:
    """Blue's other user: everything but ann's tasks."""
    name, forbidden = f"mal on {port}", siege.victims.topics[:3]
    socket = await _socket(siege, port, siege.as_mal())
    tries = [_subscribing(siege, socket, name, [topic], fair=may_be(topic)) for topic in siege.victims.topics]
    tries += [_subscribing(siege, socket, name, [*_SHARED, topic], fair=False) for topic in forbidden]
    await siege.run(tries, at_once=8)
    return name, socket, forbidden


async def _with_less(siege: Siege, port: int) -> tuple[str, Talk, Collection[str]]:
    """Tokens that allow only some topics and agents: from the beginning, and on a socket that had more."""
    less = {"topics": ["mine/*", "one"], "agents": ["sales", "help-*"]}
    claims = siege.as_mal(**less)
    limited, name = await _socket(siege, port, claims), f"mal with less on {port}"
    forbidden = [
        FREE_TOPIC, f"agent:{AGENT}", "mine", "Mine/x", "xmine/x", "one/x", "on", "agent:sale", "agent:Sales",
        "agent:help", "mine/*", "*", "session:x",
    ]  # fmt: skip
    tries = [_subscribing(siege, limited, name, [topic], fair=False) for topic in forbidden]
    await siege.run(tries, at_once=8)
    more = await _socket(siege, port, siege.as_mal())
    for socket, topics_of in ((limited, _SHARED), (more, siege.victims.topics[3:])):
        assert (
            await socket.say({"type": "subscribe", "topics": [*topics_of, "mine/x", "agent:sales"]})
        ).accepted
    assert (await more.say({"type": "auth", "token": siege.mint.token(claims)})).accepted
    name = f"mal with less, later, on {port}"
    await siege.run(
        [_subscribing(siege, more, name, [topic], fair=False) for topic in forbidden[2:]], at_once=8
    )
    return name, more, forbidden


async def _socket(siege: Siege, port: int, claims: Claims) -> Talk:
    socket = await talk(port, f"/ws/mine-{siege.word()}", bearer(siege.mint.token(claims)))
    siege.eavesdrop(socket, insider=True)
    return socket


def _subscribing(siege: Siege, socket: Talk, name: str, wanted: list[str], *, fair: bool) -> Attempt:
    said: dict[str, Any] = {"type": "subscribe", "topics": wanted}
    return Attempt(f"subscribe {str(wanted)[:80]} as {name}", partial(_say, siege, socket, said), fair)


async def _say(siege: Siege, socket: Talk, message: dict[str, Any]) -> Answer:
    """Its answer repeats what was said on the socket before, too."""
    answer = await socket.say(message)
    return answer._replace(sent=answer.sent + "\n".join(odd_topics(siege)).encode())
