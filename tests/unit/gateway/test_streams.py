"""Streamed answers: who has what of them, whatever is lost, late, slow or in the middle of something else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.position import Batch
from gateway import streams as streams_module
from gateway.feed import Feed, Stream
from gateway.framing import SOCKET_FRAMING
from gateway.hub import Hub
from gateway.streams import _TAIL_BYTES
from gateway.text_stream import Have, Part, PartName, chunk_message
from tests.support.answers import Reader, Said, inside
from tests.unit.gateway.fakes import (
    SESSION,
    Call,
    Clock,
    FakeLogger,
    FakeSessionLog,
    FakeSocket,
    FakeStore,
    Timers,
    messages,
    settle,
)

MERGE_S = 0.04
TASK = "t-1"
WORDS = ("Hello, ", "wörld", ' \u2014 "quoted"\n', "tab\tback\\slash ", "\U0001f680 ", "\x00end. ")


class World:
    """A hub with one session, its agent, and everything between them."""

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.store = FakeStore()
        self.log = FakeSessionLog()
        self.hub = Hub(
            self.store.as_store(), self.log.as_log(), FakeLogger().as_logger(), lambda _c, _p: None, MERGE_S
        )
        self.streams = self.hub.streams
        self.said: dict[str, Said] = {}
        self.ends: dict[int, str] = {}
        self.sockets: dict[FakeSocket, Reader] = {}
        self.clock = Clock()

    # Sockets.

    async def open(self, has: dict[str, Have] | None = None, *, chunks: bool = True) -> FakeSocket:
        """A socket that is attached, and has all there is."""
        socket = self.socket(has, chunks=chunks)
        await self.attach(socket, has)
        await settle()
        return socket

    def socket(self, has: dict[str, Have] | None = None, *, chunks: bool = True) -> FakeSocket:
        socket = FakeSocket(self.hub, wants_chunks=chunks)
        self.sockets[socket] = Reader(self.said, self.ended_by, has)
        return socket

    async def attach(self, socket: FakeSocket, has: dict[str, Have] | None = None) -> None:
        socket.feed = await self.hub.attach(SESSION, socket, None, socket.greet, has=has or {})

    def client(self, socket: FakeSocket) -> Reader:
        """What a socket's client has by now."""
        self.sockets[socket].take(socket.news())
        return self.sockets[socket]

    def ended_by(self, message: dict[str, Any]) -> str:
        return self.ends.get(message["text"], "")

    def text(self, socket: FakeSocket, task_id: str = TASK) -> str:
        return self.client(socket).has(task_id)["text"]

    @property
    def feed(self) -> Feed:
        return self.hub._feeds[SESSION.encode()]

    def part(self, task_id: str = TASK) -> Part:
        return self.feed.streams[task_id].text.parts["text"]

    @property
    def reads(self) -> int:
        return self.log.calls.count("spoken")

    # The agent.

    def begin(self, task_id: str) -> Said:
        return self.said.setdefault(task_id, Said())

    def say(self, *deltas: str, part: PartName = "text", task_id: str = TASK, lost: bool = False) -> None:
        """Pieces, one after the other."""
        for delta in deltas:
            payload = self.speak(delta, part, task_id)
            if not lost:
                self.push(payload)

    def speak(self, delta: str, part: PartName = "text", task_id: str = TASK) -> bytes:
        """A piece that Redis has; returns what it publishes."""
        said = self.begin(task_id)
        head = f"+{task_id} {said.attempt} {part} {len(said.now[part])} {len(delta)}".encode()
        said.now[part] += delta
        self.keep(task_id)
        return head + b"\n" + inside(delta)

    def keep(self, task_id: str = TASK) -> None:
        self.log.streams.setdefault(SESSION, {})[task_id] = self.said[task_id].spoken(task_id)

    def again(self, task_id: str = TASK) -> None:
        """Another attempt; nobody is told before it says something."""
        self.begin(task_id).attempts.append({"text": "", "reasoning": ""})

    def finish(self, task_id: str = TASK) -> list[bytes]:
        """The end of an answer; returns what is published of it."""
        self.log.streams.get(SESSION, {}).pop(task_id, None)
        batch = self.log.append()
        self.ends[self.log._texts] = task_id
        return [f"-{task_id}".encode(), batch_payload(batch)]

    def end(self, task_id: str = TASK) -> None:
        for payload in self.finish(task_id):
            self.push(payload)

    def push(self, payload: bytes) -> None:
        self.hub.on_push([b"message", SESSION.encode(), payload])

    def check_nothing_is_left(self) -> None:
        feed = self.feed
        assert not feed.loading
        assert (feed.streams, feed.has, self.timers.waiting) == ({}, {}, [])


def batch_payload(batch: Batch) -> bytes:
    return b"\n".join([f"{batch.epoch}:{batch.first}".encode(), *batch.entries])


@pytest.fixture
async def world() -> World:
    """Of which nothing waits for time."""
    return World(Timers())


@pytest.fixture(autouse=True)
def timers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Time stands still, and the module sleeps by the world's clock."""
    if "world" not in request.fixturenames:
        yield
        return
    made: World = request.getfixturevalue("world")
    made.timers.asyncio.sleep = made.clock.sleep
    with patch.object(streams_module, "asyncio", made.timers.asyncio):
        yield


def shape(socket: FakeSocket) -> list[tuple[int, str]]:
    """Offset and text of its pieces."""
    return [(one["offset"], one["delta"]) for one in socket.chunks]


# When pieces are sent.


async def test_the_first_at_once_then_merged(world: World) -> None:
    """What comes within the time is sent in one piece at its end; behind a silence the next goes at once."""
    socket = await world.open()
    world.say("a")
    assert shape(socket) == [(0, "a")]
    world.say("b", "c")
    assert shape(socket) == [(0, "a")]
    assert [timer.delay_s for timer in world.timers.waiting] == [MERGE_S]
    world.timers.fire()
    assert shape(socket) == [(0, "a"), (1, "bc")]
    world.say("d")
    assert len(socket.chunks) == 2
    world.timers.fire()
    world.timers.fire()
    assert shape(socket)[2:] == [(3, "d")]
    assert world.timers.waiting == []
    world.say("e")
    assert shape(socket)[3:] == [(4, "e")]
    assert not any("snapshot" in one for one in socket.chunks)


async def test_without_merging(world: World) -> None:
    """Every piece goes out as it comes, and no timer runs."""
    world.streams._merge_s = 0.0
    socket = await world.open()
    world.say(*WORDS)
    assert [delta for _, delta in shape(socket)] == list(WORDS)
    assert world.timers.waiting == []


async def test_encoded_once_for_all(world: World) -> None:
    """Sockets that have the same are sent the same bytes."""
    sockets = [await world.open() for _ in range(5)]
    with patch.object(streams_module, "chunk_message", wraps=chunk_message) as encode:
        world.say("a", "b")
        world.timers.fire()
    assert encode.call_count == 2
    assert all(one.written[-1] is sockets[0].written[-1] for one in sockets)


async def test_who_does_not_want_pieces(world: World) -> None:
    """Gets none; where nobody does, nothing is held or read."""
    plain = await world.open(chunks=False)
    world.say("a", "b")
    world.say("lost", lost=True)
    world.say("c")
    await world.hub.check_positions(0)
    await settle()
    world.check_nothing_is_left()
    assert (plain.chunks, world.reads, world.streams.healed) == ([], 0, 0)

    socket = await world.open()
    world.say("d")
    assert (plain.chunks, world.text(socket)) == ([], "ablostcd")
    world.end()
    assert plain.seqs == socket.seqs == [1]


async def test_text_and_reasoning(world: World) -> None:
    """Each has its own offsets."""
    socket = await world.open()
    world.say("hm", part="reasoning")
    world.say("a")
    world.say("m", part="reasoning")
    world.timers.fire()
    told = [(one["part"], one["offset"], one["delta"]) for one in socket.chunks]
    assert sorted(told) == [("reasoning", 0, "hm"), ("reasoning", 2, "m"), ("text", 0, "a")]
    assert world.client(socket).has(TASK) == {"text": "a", "reasoning": "hmm"}


async def test_several_answers(world: World) -> None:
    """They do not wait for each other."""
    socket = await world.open()
    for number in range(5):
        world.say("a", "b", task_id=f"t-{number}")
    assert len(socket.chunks) == 5
    world.timers.fire()
    assert [world.text(socket, f"t-{number}") for number in range(5)] == ["ab"] * 5
    world.end("t-3")
    assert set(world.feed.streams) == {"t-0", "t-1", "t-2", "t-4"}


# Sockets that do not read.


async def test_a_full_socket_is_passed_over(world: World) -> None:
    """The others get theirs; when it takes more it gets all that it lacks in one piece, without a read."""
    one, full = await world.open(), await world.open()
    world.say("a")
    full.pause()
    for word in WORDS:
        world.say(word)
        world.timers.fire()
    assert len(one.chunks) == 1 + len(WORDS)
    assert len(full.chunks) == 1
    reads = world.reads
    full.unpause()
    assert shape(full) == [(0, "a"), (1, "".join(WORDS))]
    assert world.reads == reads
    assert world.part().size == 0  # what all have is not held


async def test_what_a_full_socket_lacks_is_bounded(world: World) -> None:
    """Beyond that it is read from Redis when the socket takes more: still in one piece."""
    one, full = await world.open(), await world.open()
    world.say("a")
    full.pause()
    most = 0
    for _ in range(3_000):
        world.say("x" * 50)
        world.timers.fire()
        most = max(most, world.part().size)
    assert most <= _TAIL_BYTES
    assert len(one.chunks) == 3_001
    reads = world.reads
    full.unpause()
    await settle()
    assert world.reads == reads + 1
    assert [(one["offset"], len(one["delta"])) for one in full.chunks] == [(0, 1), (1, 150_000)]
    assert world.text(one) == world.text(full) == world.said[TASK].now["text"]
    assert world.part().size == 0
    assert full.chunks[-1].get("snapshot") is None


async def test_a_full_socket_at_the_end(world: World) -> None:
    """It is not written to; the log has the whole for it."""
    one, full = await world.open(), await world.open()
    world.say("a")
    full.pause()
    world.say("b")
    world.end()
    world.check_nothing_is_left()
    full.unpause()
    await settle()
    assert (world.text(one), world.text(full)) == ("ab", "a")
    assert one.seqs == full.seqs == [1]


async def test_a_socket_that_catches_up(world: World) -> None:
    """With its log: it gets no pieces before it is live, and then all that it lacks."""
    one, two = await world.open(), await world.open()
    world.say("a")
    world.log.gated = True
    two.pause()
    world.push(batch_payload(world.log.append()))  # which it cannot take
    assert two.behind
    two.unpause()
    await settle()
    world.say("b")
    world.timers.fire()
    assert (world.text(one), world.text(two)) == ("ab", "a")
    world.log.release()
    await settle()
    assert (world.text(two), two.seqs) == ("ab", [1])
    frames = messages(b"".join(two.written))
    assert ["seq" in frame["metadata"] for frame in frames] == [False, True, False]


async def test_a_new_socket_before_it_is_live(world: World) -> None:
    """The log comes first, however long it takes to read; then what was said so far."""
    world.say("a")
    world.log.append(5)  # two pages
    world.log.gated = True
    socket = world.socket()
    attaching = asyncio.create_task(world.attach(socket))
    await settle()
    world.log.take("resume").finish()
    await attaching
    await settle()
    world.log.take("spoken").finish()
    world.say("b")
    await settle()
    assert socket.chunks == []
    world.log.release()
    await settle()
    assert socket.seqs == [1, 2, 3, 4, 5]
    assert world.text(socket) == "ab"
    assert "seq" not in messages(socket.written[-1])[0]["metadata"]


# What is missed.


async def test_a_lost_piece_is_read(world: World) -> None:
    """It shows by the offset of the next one."""
    socket = await world.open()
    world.say("a")
    world.say("b", lost=True)
    world.say("c")
    await settle()
    assert (world.text(socket), world.streams.healed) == ("abc", 1)
    world.say("d")
    world.timers.fire()
    assert world.text(socket) == "abcd"
    assert world.reads == 1


async def test_a_lost_first_piece_is_read(world: World) -> None:
    """Also of an answer that nobody here knows."""
    socket = await world.open()
    world.say("a", lost=True)
    world.say("b")
    assert world.feed.streams == {}
    await settle()
    assert (world.text(socket), world.streams.healed) == ("ab", 1)


async def test_a_lost_last_piece_is_read_in_time(world: World) -> None:
    """Nothing tells of it until somebody looks."""
    socket = await world.open()
    world.say("a")
    world.say("b", lost=True)
    await world.hub.check_positions(0)
    await settle()
    assert world.text(socket) == "ab"


async def test_a_look_costs_little(world: World) -> None:
    """Nothing is read if nothing was missed, however long the answer is; nor if Redis is away."""
    socket = await world.open()
    world.say("a" * 1_000, "hm")
    world.say("hm", part="reasoning")
    reads = world.reads
    await world.hub.check_positions(0)
    await settle()
    assert (world.log.calls[-1], world.reads) == ("reached", reads)
    world.log.gated = True
    world.streams.check(world.feed)
    await settle()
    call = world.log.take("reached")
    call.execute()
    world.say("!")  # which the reply does not know of
    call.finish()
    await settle()
    world.streams.check(world.feed)
    await settle()
    world.log.take("reached").fail()
    await settle()
    assert (world.log.pending, world.reads) == ([], reads)
    world.timers.fire()
    assert world.client(socket).has(TASK) == world.said[TASK].now


async def test_a_lost_attempt_is_read_in_time(world: World) -> None:
    """Also if it has said less than the one before."""
    socket = await world.open()
    world.say("first try")
    world.again()
    world.say("no", lost=True)
    await world.hub.check_positions(0)
    await settle()
    assert world.text(socket) == "no"


async def test_a_lost_end(world: World) -> None:
    """What is held of the answer goes when somebody looks."""
    socket = await world.open()
    world.say("a")
    world.finish()
    await world.hub.check_positions(0)
    await settle()
    world.check_nothing_is_left()
    assert socket.seqs == [1]


async def test_pieces_during_a_read(world: World) -> None:
    """Those that the reply has are not sent twice, and those that follow what is held do not wait for it."""
    one = await world.open()
    world.say("a")
    world.log.gated = True
    two = world.socket()
    attaching = asyncio.create_task(world.attach(two))
    await settle()
    world.log.take("resume").finish()
    await attaching
    world.say("b")
    world.timers.fire()
    assert (world.text(one), world.text(two)) == ("ab", "")  # who comes does not interrupt the others
    await settle()
    world.log.take("spoken").finish()
    await settle()
    assert [(one["offset"], one["delta"], one.get("snapshot")) for one in two.chunks] == [(0, "ab", True)]
    world.log.release()
    world.say("c")
    world.timers.fire()
    assert world.text(one) == world.text(two) == "abc"
    assert shape(two)[1:] == [(2, "c")]
    assert world.reads == 1


async def reading(world: World, **more: Any) -> tuple[FakeSocket, Call]:
    """A socket that has come, while its read of the streams is under way."""
    world.log.gated = True
    socket = world.socket(**more)
    attaching = asyncio.create_task(world.attach(socket, more.get("has")))
    await settle()
    world.log.take("resume").finish()
    await attaching
    await settle()
    return socket, world.log.take("spoken")


async def test_who_comes_where_nothing_is_streamed(world: World) -> None:
    """Reads nothing, unless one begins before he is there: in the same packet behind the log's reply."""
    one = await world.open()
    assert world.reads == 0
    world.log.gated = True
    two = world.socket()
    attaching = asyncio.create_task(world.attach(two))
    await settle()
    world.log.take("resume").finish()
    world.say("a")
    await attaching
    await settle()
    world.log.release()
    await settle()
    world.say("b")
    world.timers.fire()
    assert world.text(one) == world.text(two) == "ab"
    assert world.reads == 1


@pytest.mark.parametrize("held", [False, True], ids=["unknown here", "held"])
async def test_a_piece_in_the_same_packet_behind_the_reply(world: World, held: bool) -> None:
    """The reply has not got it, and it comes before the reply is dealt with: it is not lost."""
    if held:
        await world.open()
    world.say("a")
    world.timers.fire()
    socket, call = await reading(world)
    world.say("b", lost=held)
    call.finish()
    world.say("c")
    await settle()
    world.log.release()
    await settle()
    world.timers.fire()
    assert world.text(socket) == "abc"


async def test_an_answer_that_begins_behind_the_reply(world: World) -> None:
    """In the same packet: what the reply does not know of is not forgotten."""
    world.say("another answer", task_id="t-2")
    socket, call = await reading(world)
    call.finish()
    world.say("a")
    await settle()
    assert world.text(socket) == "a"
    world.log.release()
    world.say("b")
    world.timers.fire()
    assert world.text(socket) == "ab"
    assert world.reads == 1


async def test_an_end_in_the_same_packet_behind_the_reply(world: World) -> None:
    """No piece follows the end of an answer, and nothing is left of it."""
    world.say("a")
    socket, call = await reading(world)
    call.finish()
    world.end()
    await settle()
    assert socket.seqs == [1]
    assert world.text(socket) == ""
    assert socket.chunks == []
    world.check_nothing_is_left()


async def test_another_attempt_behind_the_reply(world: World) -> None:
    """The reply is the older word."""
    one = await world.open()
    world.say("first")
    two, call = await reading(world)
    call.finish()
    world.again()
    world.say("second")
    await settle()
    world.log.release()
    world.timers.fire()
    await settle()
    assert world.text(one) == world.text(two) == "second"


@pytest.mark.parametrize("error", [RedisRefused("WRONGTYPE"), RedisUnavailable("away")])
async def test_redis_while_reading(world: World, error: RedisUnavailable) -> None:
    """Refused, it is asked again after a pause; away, when it is back. Live sockets go on meanwhile."""
    one = await world.open()
    world.say("a")
    two, call = await reading(world)
    world.store.up = isinstance(error, RedisRefused)
    call.fail(error)
    await settle()
    world.say("b")
    world.timers.fire()
    assert world.text(one) == "ab"
    assert world.log.pending == []  # nobody spins
    if world.store.up:
        assert world.clock.waits == [0.5]
        await world.clock.forward(0.5)
    else:
        world.store.up = True
    await settle()
    world.log.release()
    await settle()
    assert world.text(two) == "ab"
    assert world.reads == 2


async def test_who_leaves_during_a_read(world: World) -> None:
    """The reply finds nobody who wants it: nothing is held for those who do not."""
    await world.open(chunks=False)
    world.say("a")
    socket, call = await reading(world)
    socket.leave()
    call.finish()
    await settle()
    world.check_nothing_is_left()

    world.log.release()
    socket, call = await reading(world)
    socket.leave()
    call.fail()
    await settle()
    assert not world.feed.loading
    assert world.log.pending == []  # and it is not read again


# What Redis has lost.


async def test_redis_has_lost_the_end(world: World) -> None:
    """Who comes gets what there is, and is not read for again and again; then all go on with Redis."""
    one = await world.open()
    world.say("abc", "def")
    world.timers.fire()
    said = world.said[TASK]
    said.now["text"] = "abc"
    world.keep()
    two = await world.open()
    reads = world.reads
    await settle()
    assert world.text(two) == "abc"
    assert world.reads == reads
    assert not world.feed.loading
    world.say("d", "efg")
    world.timers.fire()
    assert world.text(one) == world.text(two) == "abcdefg"
    assert world.reads == reads


async def test_redis_has_lost_an_attempt(world: World) -> None:
    """It is not read again and again for who lacks it."""
    await world.open()
    world.say("first")
    earlier = world.log.streams[SESSION][TASK]
    world.again()
    world.say("second")
    world.timers.fire()
    world.log.streams[SESSION][TASK] = earlier
    two = await world.open()
    reads = world.reads
    await settle()
    assert (two.chunks, world.reads) == ([], reads)
    assert not world.feed.loading
    world.keep()
    world.say(" try")
    world.timers.fire()
    await settle()
    assert world.text(two) == "second try"


# Who comes late.


async def test_who_comes_in_the_middle(world: World) -> None:
    """Gets a snapshot, then what follows; the others get no snapshot of what they have."""
    one = await world.open()
    world.say("hm", part="reasoning")
    world.say(*WORDS)
    world.timers.fire()
    two = await world.open()
    world.say("!")
    world.timers.fire()
    text = "".join(WORDS)
    told = [(one["part"], one["offset"], one["delta"], one.get("snapshot")) for one in two.chunks]
    assert told == [
        ("reasoning", 0, "hm", True), ("text", 0, text, True), ("text", len(text), "!", None)
    ]  # fmt: skip
    assert not any("snapshot" in chunk for chunk in one.chunks)
    assert world.text(one) == world.text(two) == text + "!"


@pytest.mark.parametrize(
    ("have", "told"),
    [
        (Have(1, 3, 1), [("reasoning", 1, "m", None), ("text", 3, "lo", None)]),
        (Have(1, 5, 2), []),
        (Have(1, 0, 2), [("text", 0, "hello", True)]),
        (Have(1, 5, 10**9), []),
        (Have(1, 10**9, 1), [("reasoning", 1, "m", None)]),
        (Have(2, 3, 1), [("reasoning", 0, "hm", True), ("text", 0, "hello", True)]),
    ],
)
@pytest.mark.parametrize("held", [False, True], ids=["unknown here", "held"])
async def test_who_knows_what_he_has(
    world: World, have: Have, told: list[tuple[Any, ...]], held: bool
) -> None:
    """Gets what he lacks, also where it is held for others; no more than there is counts as had."""
    if held:
        one = await world.open()
        one.pause()
    world.say("hello")
    world.say("hm", part="reasoning")
    socket = FakeSocket(world.hub, wants_chunks=True)
    await world.attach(socket, {TASK: have, "t-9": Have(1, 1, 1)})
    await settle()
    pieces = [(one["part"], one["offset"], one["delta"], one.get("snapshot")) for one in socket.chunks]
    assert pieces == told
    assert world.feed.has == {}
    assert TASK in world.feed.streams
    world.say("!")
    world.timers.fire()
    assert socket.chunks[-1]["offset"] == 5


async def test_what_a_client_has_is_read_while_pieces_come(world: World) -> None:
    """It is not sent anything before it is known what it lacks."""
    one = await world.open()
    one.pause()
    world.say("hello")
    has = {TASK: Have(1, 5, 0)}
    socket, call = await reading(world, has=has)
    world.say(" you")
    world.timers.fire()
    assert socket.chunks == []
    call.finish()
    await settle()
    assert shape(socket) == [(5, " you")]


# Another attempt.


async def test_another_attempt_resets_everybody(world: World) -> None:
    """Who was full too; and what the earlier one goes on to say is ignored."""
    one, full, late = await world.open(), await world.open(), await world.open()
    world.say("first")
    world.say("hm", part="reasoning")
    world.timers.fire()
    full.pause()
    world.say(" try")
    stale = world.speak(", and on")
    world.again()
    world.say("again")
    world.push(stale)
    world.timers.fire()
    full.unpause()
    for socket in (one, full, late):
        assert world.client(socket).has(TASK) == {"text": "again", "reasoning": ""}
        assert world.client(socket).attempts == {TASK: 2}
    world.again()
    world.say("lost ", lost=True)
    world.say("and found")
    await settle()
    world.timers.fire()
    assert {world.text(socket) for socket in (one, full, late)} == {"lost and found"}


# The end.


async def test_the_end_sends_what_is_left(world: World) -> None:
    """Before the message with the whole; then nothing is left, no timer either."""
    socket = await world.open()
    world.say("a", "b")
    world.end()
    frames = messages(b"".join(socket.written))
    assert ["seq" in frame["metadata"] for frame in frames] == [False, False, True]
    assert world.text(socket) == "ab"
    world.check_nothing_is_left()
    world.timers.fire()
    world.push(b"-t-1")
    assert len(socket.written) == 3


async def test_a_message_of_the_log_does_not_overtake(world: World) -> None:
    """What was said before it goes first, also what waits to be merged; the timer has nothing left then."""
    socket = await world.open()
    world.say("a", "b")
    world.push(batch_payload(world.log.append()))
    frames = messages(b"".join(socket.written))
    assert ["seq" in frame["metadata"] for frame in frames] == [False, False, True]
    world.timers.fire()
    assert len(socket.written) == 3


class Told:
    """A framing that shows where it is told that its client has caught up."""

    message = staticmethod(SOCKET_FRAMING.message)
    log = staticmethod(SOCKET_FRAMING.log)

    def caught_up(self) -> bytes:
        return SOCKET_FRAMING.message(b'{"type":"caught_up","metadata":{}}')


@pytest.mark.parametrize("late", ["log", "text"])
async def test_when_a_client_has_caught_up(world: World, late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the log, and what was said so far, whichever of them comes last."""
    await world.open()
    world.say("a")
    for _ in range(4):
        world.push(batch_payload(world.log.append()))
    if late == "log":
        monkeypatch.setattr("tests.unit.gateway.fakes.PAGE_ENTRIES", 1)
    socket = world.socket()
    socket.framing = Told()
    await world.attach(socket)
    await settle()
    world.push(batch_payload(world.log.append()))
    told = [message["type"] for message in messages(b"".join(socket.written))]
    assert [kind for kind in told if kind != "t"][:2] == ["agent_chunk", "caught_up"]
    assert told[:4] == ["t"] * 4
    assert told[-1] == "t"


async def test_nothing_is_left_of_who_goes(world: World) -> None:
    """Of one among others its places, of the last one everything."""
    one, two, plain = await world.open(), await world.open(), await world.open(chunks=False)
    world.say("a", "b")
    stream: Stream = world.feed.streams[TASK]
    assert set(stream.places) == {one, two}
    one.leave()
    assert set(stream.places) == {two}
    two.leave()
    world.check_nothing_is_left()
    feed = world.feed
    plain.leave()
    assert (world.hub.sessions, feed.everyone, feed.streams) == (0, [], {})


# Any order of anything.


class Chaos(World):
    """A world in which Redis does its work when it comes to it, and what it says takes its time.

    Replies and pushes come in one order, as over one connection, and some at once, as in one packet.
    """

    def __init__(self, timers: Timers, *, lossy: bool) -> None:
        super().__init__(timers)
        self.log.gated = True
        self.lossy = lossy
        self.wire: list[bytes | Call] = []
        self.under_way: list[asyncio.Task[Any]] = []
        self.finished: set[str] = set()

    @property
    def task(self) -> str:
        return f"t-{len(self.finished)}"

    @property
    def here(self) -> list[FakeSocket]:
        """Sockets that are attached."""
        return [socket for socket in self.sockets if socket.feed is not None]

    async def do(self, deed: str, number: int) -> None:
        """One step of a story."""
        if deed in ("pause", "unpause", "leave"):
            if self.here:
                getattr(self, deed)(self.here[number % len(self.here)])
        else:
            getattr(self, deed)(number)
        await settle()
        for socket in self.here:
            self.client(socket)

    def loses(self, number: int) -> bool:
        return self.lossy and number % 3 == 0

    def speaks(self, number: int) -> None:
        delta = WORDS[number % len(WORDS)] * (1 + number % 4 * 8)
        part: PartName = "reasoning" if number % 5 == 1 else "text"
        self.publish(self.speak(delta, part, self.task), lost=self.loses(number))

    def tries_again(self, _number: int) -> None:
        self.again(self.task)

    def ends_it(self, number: int) -> None:
        if self.task not in self.said:
            return
        ended, logged = self.finish(self.task)
        self.finished.add(self.task)
        lost = self.loses(number)  # one script publishes both: who has lost the first has lost the second
        if lost:
            self.ends.popitem()  # of who has not heard of the end nobody can ask that nothing follows it
        self.publish(ended, lost=lost)
        self.publish(logged, lost=lost or self.loses(number + 1))

    def logs(self, number: int) -> None:
        self.publish(batch_payload(self.log.append()), lost=self.loses(number))

    def time_passes(self, _number: int) -> None:
        self.timers.fire()

    def look(self, _number: int) -> None:
        """As is done every few seconds."""
        self.under_way.append(asyncio.create_task(self.hub.check_positions(0)))

    def pause(self, socket: FakeSocket) -> None:
        socket.pause()

    def unpause(self, socket: FakeSocket) -> None:
        if not socket.writable:
            socket.unpause()

    def leave(self, socket: FakeSocket) -> None:
        socket.leave()

    def come(self, number: int) -> None:
        """A client, perhaps one that has been here before."""
        if len(self.here) >= 5:
            return
        has: dict[str, Have] = {}
        gone = [one for one, client in self.sockets.items() if one.feed is None and client.attempts]
        if gone and number % 2:
            client = self.client(gone[number % len(gone)])
            has = {
                task: Have(attempt, *(len(text) for text in client.has(task).values()))
                for task, attempt in client.attempts.items()
            }
        socket = self.socket(has, chunks=number % 4 != 2)
        self.under_way.append(asyncio.create_task(self.attach(socket, has)))

    def publish(self, payload: bytes, *, lost: bool) -> None:
        if not lost:
            self.wire.append(payload)

    def work(self, number: int) -> None:
        """Redis does what it was asked for, in order."""
        calls = 1 + number % 3
        for call in self.log.pending[:calls]:
            call.execute()
            self.wire.append(call)
        del self.log.pending[:calls]

    def packet(self, number: int) -> None:
        """Some of what Redis has said arrives at once."""
        count = 1 + number % 4
        arrived, self.wire = self.wire[:count], self.wire[count:]
        for one in arrived:
            if isinstance(one, bytes):
                self.push(one)
            else:
                one.finish()

    def rush(self, number: int) -> None:
        """Much at once: replies, and what is said right behind them, in one packet."""
        self.work(2)
        if number % 4 == 1:
            self.tries_again(number)
        if number % 4:
            self.speaks(number)
        if number % 4 in (0, 2):
            self.ends_it(number)
        self.packet(3)
        self.packet(3)

    async def calm_down(self) -> None:
        """All that is under way arrives, everybody reads, and time passes."""
        for socket in self.here:
            if not socket.writable:
                socket.unpause()
        for _ in range(100):
            await settle()
            if not self.wire and not self.log.pending and not self.timers.waiting:
                return
            self.work(0)
            self.packet(0)
            self.timers.fire()
        raise AssertionError("it does not come to rest")

    async def check_all_have_all(self) -> None:
        """Everybody who is here has what was said, and then the end; nothing is left of it."""
        await self.calm_down()
        if self.lossy:
            await self.do("look", 0)
            await self.calm_down()
        readers = [socket for socket in self.here if socket.wants_chunks]
        task = self.task
        kept = self.log.streams.get(SESSION, {}).get(task)
        known = not self.lossy or (self.here and task in self.feed.streams)  # one piece at least has come
        if kept is not None and known:  # of an attempt that has said nothing yet nobody knows
            for socket in readers:
                assert self.client(socket).has(task) == self.said[task].attempts[kept.attempt - 1]
        self.lossy = False
        self.begin(task)
        await self.do("ends_it", 0)
        await self.calm_down()
        for socket in self.here:
            client = self.client(socket)
            assert task in client.whole
            assert socket.seqs == sorted(set(socket.seqs))
        if self.here:
            self.check_nothing_is_left()
            for socket in self.here:
                socket.leave()
        await self.calm_down()
        await asyncio.gather(*self.under_way)
        assert self.hub.sessions == 0


DEEDS = st.sampled_from(
    ["speaks"] * 6 + ["packet"] * 4 + ["work"] * 3 + ["come"] * 3 + ["rush"] * 2
    + ["time_passes", "pause", "unpause", "leave", "tries_again", "ends_it", "logs", "look"]
)  # fmt: skip
TURNS = st.lists(st.tuples(DEEDS, st.integers(0, 59)), min_size=10, max_size=60)


async def live_through(turns: list[tuple[str, int]], *, lossy: bool) -> None:
    chaos = Chaos(Timers(), lossy=lossy)
    with (
        patch.object(streams_module, "asyncio", chaos.timers.asyncio),
        patch.object(streams_module, "_TAIL_BYTES", 400),
    ):
        for deed, number in turns:
            await chaos.do(deed, number)
        await chaos.check_all_have_all()


@given(TURNS)
@settings(max_examples=300, deadline=None)
def test_any_story_without_losses(turns: list[tuple[str, int]]) -> None:
    """Whoever comes, goes, is slow or in between: a prefix of what was said, and all of it in the end."""
    asyncio.run(live_through(turns, lossy=False))


@given(TURNS)
@settings(max_examples=300, deadline=None)
def test_any_story_with_losses(turns: list[tuple[str, int]]) -> None:
    """The same if pub/sub loses whatever it wants, once somebody has looked."""
    asyncio.run(live_through(turns, lossy=True))
