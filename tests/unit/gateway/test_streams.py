"""What is published while the streams of a session are read: before the reply, behind it, or too much."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backplane.session_log import Spoken
from gateway.hub import Hub
from tests.unit.gateway.fakes import (
    SESSION,
    FakeLogger,
    FakeSessionLog,
    FakeSocket,
    FakeStore,
    messages,
    settle,
)

TASK = "t-1"


class SpeakingLog(FakeSessionLog):
    """One whose answers are asked for when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""
        self.asked: list[asyncio.Future[list[Spoken]]] = []

    async def spoken(self, _session: str) -> list[Spoken]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    def reply(self) -> None:
        """The reply arrives: what was said up to now; whoever waits for it goes on later."""
        told = [Spoken(TASK, 1, len(self.said), self.said.encode(), 0, b"")] if self.said else []
        self.asked[-1].set_result(told)


class World:
    """A session with one socket that has just come."""

    def __init__(self) -> None:
        self.log = SpeakingLog()
        logger = FakeLogger().as_logger()
        self.hub = Hub(FakeStore().as_store(), self.log.as_log(), logger, lambda _channel, _payload: None)
        self.socket = FakeSocket(self.hub, wants_chunks=True)

    def say(self, text: str) -> None:
        """The agent says more, and it is published."""
        head = f"+{TASK} 1 text {len(self.log.said)} {len(text)}\n"
        self.log.said += text
        self.hub.on_push([b"message", SESSION.encode(), head.encode() + text.encode()])

    def end(self) -> None:
        self.log.said = ""
        self.hub.on_push([b"message", SESSION.encode(), f"-{TASK}\n".encode()])

    @property
    def told(self) -> list[dict[str, Any]]:
        return [message["data"] for message in messages(b"".join(self.socket.written))]

    @property
    def text(self) -> str:
        """As a client puts it together."""
        text = ""
        for data in self.told:
            text = "" if data.get("snapshot") else text
            assert data["offset"] == len(text)
            text += data["delta"]
        return text


@pytest.fixture
async def world() -> World:
    made = World()
    await made.socket.attach()
    await settle()
    assert len(made.log.asked) == 1
    return made


async def test_before_the_reply(world: World) -> None:
    """It is in the reply, and not told twice."""
    world.say("one ")
    world.log.reply()
    await settle()

    assert world.text == "one "
    assert len(world.told) == 1


async def test_right_behind_the_reply(world: World) -> None:
    """In the same read as the reply, before anybody could deal with that: it is told all the same."""
    world.log.reply()
    world.say("one ")
    world.say("two")
    await settle()

    assert world.text == "one two"


async def test_on_both_sides(world: World) -> None:
    """What is in the reply, and what follows it."""
    world.say("one ")
    world.log.reply()
    world.say("two")
    await settle()

    assert world.text == "one two"


async def test_it_ends_right_behind_the_reply(world: World) -> None:
    """Nothing of it is told any more: the log has the whole."""
    world.say("one ")
    world.log.reply()
    world.say("two")
    world.end()
    await settle()

    assert world.socket.feed is not None
    assert world.socket.feed.streams == {}


async def test_too_much_to_be_kept(world: World) -> None:
    """Then the whole is read again."""
    world.log.reply()
    for _ in range(10):
        world.say("x" * 50_000)
    await settle()
    assert len(world.log.asked) == 2
    world.log.reply()
    await settle()

    assert world.text == "x" * 500_000
