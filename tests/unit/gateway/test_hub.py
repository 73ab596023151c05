"""The hub: every socket gets every message of its session once and in order, whatever is lost on the way."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.position import Batch, Position
from backplane.session_log import Mark
from gateway import feed as feed_module
from gateway import hub as hub_module
from gateway.delays import Delays
from gateway.feed import Feed
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


class ToldDelays(Delays):
    """Remembers how many messages went out live, and how many late."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.late = self.acks = 0

    def delivered(self, feed: Feed, batch: Batch) -> None:
        self.live += len(batch.entries)

    def missed(self, entries: list[bytes]) -> None:
        self.late += len(entries)

    def acked(self, feed: Feed, seq: int) -> None:
        self.acks = seq


class World:
    """A hub, and everything around it."""

    def __init__(self, log: FakeSessionLog | None = None) -> None:
        self.store = FakeStore()
        self.log = log or FakeSessionLog()
        self.logger = FakeLogger()
        self.others: list[tuple[bytes, bytes]] = []
        self.delays = ToldDelays()
        self.hub = Hub(
            self.store.as_store(),
            self.log.as_log(),
            self.logger.as_logger(),
            lambda channel, payload: self.others.append((channel, payload)),
            delays=self.delays,
        )

    def socket(self, *, wants_chunks: bool = False) -> FakeSocket:
        return FakeSocket(self.hub, wants_chunks=wants_chunks)

    async def open(
        self, cursor: Position | None = None, session: str = SESSION, *, wants_chunks: bool = False
    ) -> FakeSocket:
        """A socket that is attached, and has all there is."""
        socket = self.socket(wants_chunks=wants_chunks)
        assert await socket.attach(cursor, session)
        await settle()
        return socket

    def opening(self, socket: FakeSocket, cursor: Position | None = None) -> asyncio.Task[bool]:
        """The same, under way."""
        return asyncio.create_task(socket.attach(cursor))

    def push(self, payload: bytes, session: str = SESSION) -> None:
        self.hub.on_push([b"message", session.encode(), payload])

    def publish(self, batch: Batch, session: str = SESSION) -> None:
        head = f"{batch.epoch}:{batch.first}".encode()
        self.push(b"\n".join([head, *batch.entries]), session)

    def say(self, count: int = 1) -> None:
        """Messages that arrive as they should."""
        self.publish(self.log.append(count))

    def gate(self) -> None:
        self.log.gated = True


@pytest.fixture
async def world() -> World:
    return World()


def all_up_to(last: int) -> list[int]:
    return list(range(1, last + 1))


# Live messages.


async def test_live_messages_are_delivered(world: World) -> None:
    """What is published reaches every socket of its session, whole, and no other session's."""
    one, two = await world.open(), await world.open()
    other = await world.open(session="ao:{orchestrator:acme:callbacks}:s:other")

    world.say()
    world.say(2)

    assert one.seqs == two.seqs == [1, 2, 3]
    assert messages(one.written[0])[0]["metadata"] == {"epoch": "e1", "seq": 1}
    assert other.seqs == []
    assert world.hub.delivered == 6
    assert world.hub.gaps == 0
    assert world.log.calls.count("read") == 0  # not for what pub/sub brought


async def test_a_message_is_encoded_once(world: World) -> None:
    """Fan-out costs one encoding, not one per socket: all are given the same bytes object."""
    sockets = [await world.open() for _ in range(3)]

    world.say(2)

    written = [socket.written[-1] for socket in sockets]
    assert written[0] is written[1] is written[2]


async def test_duplicates_are_skipped(world: World) -> None:
    """The same publish twice, or one that was read from the log already, is not sent again."""
    first = world.log.append(2)
    socket = await world.open()
    second = world.log.append(2)

    for batch in (first, second, second, first, second):
        world.publish(batch)
    await settle()

    assert socket.seqs == [1, 2, 3, 4]
    assert world.log.calls.count("read") == 0


async def test_a_half_known_publish_is_completed(world: World) -> None:
    """A batch of which the socket has the beginning already brings only its end."""
    world.log.append(2)
    socket = await world.open()
    world.log.append(2)
    record = world.log.record()

    world.publish(Batch(record.epoch, 2, record.entries[1:]))
    await settle()

    assert socket.seqs == [1, 2, 3, 4]


async def test_what_is_no_session_is_handed_on(world: World) -> None:
    """The pod's own channel, and one that was left a moment ago, do not reach a socket."""
    socket = await world.open()

    world.push(b"1", "ao:{pods:p}:probe")
    world.hub.on_push([b"subscribe", SESSION.encode(), 1])

    assert world.others == [(b"ao:{pods:p}:probe", b"1")]
    assert socket.written == []


@pytest.mark.parametrize(
    "payload",
    [b"", b"hello", b"e1:", b"e1:x\n{}", b"!", b"!x", b"\xff:1\n{}", b"e1:" + b"9" * 5000 + b"\n{}"],
)
async def test_foreign_publishes_are_ignored(world: World, payload: bytes) -> None:
    """What another program publishes on a session's channel is logged, and disturbs nobody."""
    socket = await world.open()

    world.push(payload)
    world.say()
    await settle()

    assert socket.seqs == [1]
    assert socket.restarts == []
    assert world.logger.names == ["foreign_publish"]


async def test_chunks_go_to_those_who_asked(world: World) -> None:
    """What is in no log is sent only to sockets with ``stream=1``, and only to those that can take it now."""
    plain, streaming = await world.open(), await world.open(wants_chunks=True)
    paused, behind = await world.open(wants_chunks=True), await world.open(wants_chunks=True)
    paused.pause()
    behind.behind = True

    world.push(b'~\n{"type":"agent_chunk"}')

    assert [message["type"] for message in messages(b"".join(streaming.written))] == ["agent_chunk"]
    assert plain.written == paused.written == behind.written == []
    assert streaming.seq == 0  # it moves no position


async def test_chunks_wait_for_no_history(world: World) -> None:
    """A socket that is still catching up is sent no chunk between its older messages."""
    socket = world.socket(wants_chunks=True)
    world.gate()
    opening = world.opening(socket)
    await settle()

    world.push(b'~\n{"type":"agent_chunk"}')
    world.log.release()
    await opening

    assert socket.written == []


# Opening.


async def test_history_then_live(world: World) -> None:
    """A socket is sent what its log holds, over any number of pages, and then what comes."""
    world.log.append(8)
    socket = await world.open()
    world.say()

    assert socket.seqs == all_up_to(9)
    assert socket.resumed is not None
    assert (socket.resumed.start, socket.resumed.head) == (0, 8)


async def test_a_cursor_leaves_out_what_is_known(world: World) -> None:
    """A client that comes back is sent only what follows its cursor."""
    world.log.append(5)
    socket = await world.open(Position("e1", 3))

    assert socket.seqs == [4, 5]


@pytest.mark.parametrize("published", range(8))
@pytest.mark.parametrize("executed", range(8))
@pytest.mark.parametrize("known", [0, 2])
async def test_every_overlap_of_history_and_live(
    world: World, executed: int, published: int, known: int
) -> None:
    """Wherever the read falls among the live messages, none is missing and none comes twice.

    Of seven messages, those from ``published`` on come live while the socket opens, and the log is read when
    it holds ``executed`` of them.
    """
    world.gate()
    socket = world.socket()
    world.log.append(known)
    opening = world.opening(socket, Position("e1", known))
    await settle()
    resume = world.log.take("resume")
    for number in range(8):
        if number == executed:
            resume.execute()
        if number < 7:
            batch = world.log.append()
            if number >= published:
                world.publish(batch)
    resume.finish()
    world.log.release()
    await opening
    await settle()
    await world.hub.check_positions(0)  # what nothing live follows is a silent loss
    await settle()

    assert socket.seqs == list(range(known + 1, known + 8))
    assert socket.restarts == []


async def test_live_messages_wait_while_history_is_read(world: World) -> None:
    """What is published during the read is not sent before the older messages that the read brings."""
    world.log.append(4)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    world.say()
    assert socket.seqs == [1, 2, 3]  # a page

    world.log.release()
    await settle()
    assert socket.seqs == all_up_to(5)


async def test_more_live_than_is_kept_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its limit a catch-up forgets live messages, and reads them from the log instead."""
    monkeypatch.setattr(feed_module, "_KEPT_ASIDE_BYTES", 2_000)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    resume = world.log.take("resume")
    resume.execute()
    for _ in range(10):
        world.publish(world.log.append(size=500))
    [group] = world.hub._feeds[SESSION.encode()].catching
    assert group.live_bytes == sum(len(entry) for batch in group.live for entry in batch.entries)
    assert group.live_bytes <= 2_000
    assert len(group.live) == 3
    resume.finish()
    world.log.release()
    await opening
    await settle()

    assert socket.seqs == all_up_to(10)
    assert world.log.calls.count("read") >= 3


async def test_one_live_message_larger_than_the_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is kept whatever its size, so that a catch-up always comes to an end."""
    monkeypatch.setattr(feed_module, "_KEPT_ASIDE_BYTES", 2_000)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    resume = world.log.take("resume")
    resume.execute()
    world.publish(world.log.append(size=10))
    world.publish(world.log.append(size=5_000))
    resume.finish()
    world.log.release()
    await opening
    await settle()

    assert socket.seqs == [1, 2]


async def test_opening_while_redis_is_away(world: World) -> None:
    """An attach that fails leaves nothing behind: no feed, no subscription."""
    world.gate()
    opening = world.opening(world.socket())
    await settle()
    assert world.log.subscribed == {SESSION}
    world.log.take("resume").fail()

    with pytest.raises(RedisUnavailable):
        await opening
    assert world.hub.sessions == 0
    assert world.log.subscribed == set()


async def test_opening_that_fails_leaves_the_others(world: World) -> None:
    """An attach that fails does not take the session from the sockets that have it."""
    socket = await world.open()
    world.gate()
    opening = world.opening(world.socket())
    await settle()
    world.log.take("resume").fail()
    with pytest.raises(RedisUnavailable):
        await opening
    world.say()

    assert socket.seqs == [1]
    assert world.log.subscribed == {SESSION}


async def test_opening_that_is_cancelled(world: World) -> None:
    """A handshake that times out leaves nothing behind either."""
    world.gate()
    opening = world.opening(world.socket())
    await settle()
    opening.cancel()
    await settle()

    assert opening.cancelled()
    assert world.hub.sessions == 0
    assert world.log.subscribed == set()


async def test_client_that_left_while_it_was_resumed(world: World) -> None:
    """A socket that has gone when its history arrives is sent nothing, and leaves nothing behind."""
    world.log.append(2)
    socket = world.socket()
    socket.gone = True

    assert not await socket.attach()
    assert socket.written == []
    assert world.hub.sessions == 0
    assert world.log.subscribed == set()
    assert world.log.marks == []


async def test_subscription_before_the_read(world: World) -> None:
    """The channel is subscribed to before the log is read: nothing can fall between."""
    world.gate()
    opening = world.opening(world.socket())
    await settle()

    assert world.log.subscribed == {SESSION}
    world.log.release()
    assert await opening


# Gaps.


async def test_a_publish_that_jumps_ahead(world: World) -> None:
    """A lost publish is noticed by the seq of the next, and filled from the log."""
    socket = await world.open()
    world.say()
    world.log.append(5)  # lost on the way
    world.say()
    await settle()

    assert socket.seqs == all_up_to(7)
    assert world.hub.gaps == 1


async def test_what_is_told_of_delays(world: World) -> None:
    """Live messages once for all sockets, what was missed as late; history, and a slow socket, not at all."""
    world.log.append(3)
    one, _two = await world.open(), await world.open()
    assert (world.delays.live, world.delays.late, world.hub.caught_up) == (0, 0, 6)
    world.say()
    world.log.append(2)  # lost on the way
    world.say()
    await settle()
    assert (world.delays.live, world.delays.late, world.hub.caught_up) == (1, 3, 12)

    one.writable = False
    world.say()
    assert (world.delays.live, world.delays.late) == (2, 3)
    one.writable = True
    assert one.feed is not None
    world.hub.resumed(one.feed, one)
    await settle()
    assert (one.seqs, world.delays.late, world.hub.caught_up) == (all_up_to(8), 3, 13)
    world.hub.acked(one.feed, 8)
    assert world.delays.acks == 8


async def test_what_a_check_finds_was_late(world: World) -> None:
    """A loss that nothing reported is found by comparing positions."""
    await world.open()
    world.log.append(2)
    await world.hub.check_positions(0)
    await settle()
    assert (world.delays.live, world.delays.late, world.hub.gaps) == (0, 2, 1)


async def test_live_messages_during_a_gap(world: World) -> None:
    """While a gap is being filled, what comes live waits, and follows in order."""
    socket = await world.open()
    world.gate()
    world.log.append()
    world.say()
    await settle()
    read = world.log.take("read")
    read.execute()
    world.say(2)
    assert socket.seqs == []
    read.finish()
    world.log.release()
    await settle()

    assert socket.seqs == all_up_to(4)
    assert world.hub.gaps == 1


async def test_sockets_with_different_gaps(world: World) -> None:
    """Sockets that stand at different places are each sent what they lack, read once for all."""
    world.log.append(2)
    one, two = await world.open(), await world.open()
    one.pause()
    world.say()  # only two gets this
    one.writable = True
    one.behind = False
    world.log.append()
    world.gate()
    world.say()
    await settle()
    assert [call.name for call in world.log.pending] == ["read"]
    world.log.release()
    await settle()

    assert one.seqs == two.seqs == all_up_to(5)


async def test_redis_goes_away_during_a_gap(world: World) -> None:
    """A catch-up waits until Redis is back and then goes on; the socket is not closed for that."""
    socket = await world.open()
    world.gate()
    world.log.append()
    world.say()
    await settle()
    world.store.up = False
    world.log.take("read").fail()
    await settle()
    assert world.log.pending == []
    world.store.up = True
    await settle()
    world.log.release()
    await settle()

    assert socket.seqs == [1, 2]
    assert socket.restarts == []


async def test_a_read_that_is_refused_is_not_repeated_at_once(world: World) -> None:
    """A session whose keys Redis cannot read must not keep the pod busy with asking."""
    await world.open()
    world.log.append()
    world.log.refusal = RedisRefused("WRONGTYPE")
    world.say()
    await settle()

    assert world.log.calls.count("read") == 1


# Sockets that do not read.


async def test_a_full_socket_gets_nothing_more(world: World) -> None:
    """What a socket cannot take stays in the log; when it can again, it is sent from there."""
    slow, quick = await world.open(), await world.open()
    world.say()
    slow.pause()
    for _ in range(5):
        world.say()
    assert slow.seqs == [1]
    assert quick.seqs == all_up_to(6)
    assert world.log.calls.count("read") == 0

    slow.unpause()
    await settle()
    world.say()
    assert slow.seqs == quick.seqs == all_up_to(7)
    assert world.hub.gaps == 0


async def test_a_socket_that_fills_up_while_it_catches_up(world: World) -> None:
    """A socket that cannot take the next page waits without a task, and goes on from where it stopped."""
    world.log.append(9)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    world.log.take("resume").finish()
    await opening
    socket.pause()
    world.log.release()
    await settle()
    assert socket.seqs == [1, 2, 3]
    assert world.hub._tasks == set()
    world.say()

    socket.unpause()
    await settle()
    assert socket.seqs == all_up_to(10)


async def test_a_socket_that_empties_while_others_catch_up(world: World) -> None:
    """A socket that can take more before its catch-up has ended is not forgotten."""
    slow, quick = await world.open(), await world.open()
    world.gate()
    world.log.append(6)
    world.say()
    await settle()
    slow.pause()
    world.log.take("read").finish()  # slow cannot take the first page
    await settle()
    slow.unpause()  # in the midst of it
    world.log.release()
    await settle()

    assert quick.seqs == all_up_to(7)
    assert slow.seqs == all_up_to(7)


async def test_a_socket_that_could_always_read(world: World) -> None:
    """A transport that reports room although nothing was held back costs no read."""
    socket = await world.open()
    world.say()
    socket.pause()
    socket.unpause()
    await settle()

    assert world.log.calls.count("read") == 0


# Logs that are not what they were.


@pytest.mark.parametrize("length", [1, 2, 5])
async def test_another_epoch(world: World, length: int) -> None:
    """A log that began anew cannot be continued: the socket has to come back and be told."""
    socket = await world.open()
    world.say(2)
    del world.log.records[SESSION]
    world.say(length)
    await settle()

    assert socket.seqs == [1, 2]
    assert len(socket.restarts) == 1
    assert world.hub.sessions == 0


async def test_another_epoch_seen_by_a_new_socket(world: World) -> None:
    """A newcomer that is told of a new epoch makes the others come back, the slow and the busy ones too."""
    live, slow = await world.open(), await world.open()
    world.say()
    slow.pause()
    world.say()
    await world.hub.marks.flush()
    world.gate()
    busy = world.socket()
    world.log.append(4)
    opening = world.opening(busy, Position("e1", 0))
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    [read] = world.log.pending
    world.log.pending.clear()

    del world.log.records[SESSION]
    world.log.append(5)
    world.log.gated = False
    newcomer = await world.open()
    assert [len(socket.restarts) for socket in (live, slow)] == [1, 1]
    read.finish()  # and the busy one's log says so itself
    await settle()
    assert len(busy.restarts) == 1
    world.say()

    assert newcomer.seqs == all_up_to(6)
    assert newcomer.restarts == []
    assert [mark for mark in world.log.marks if mark.position.epoch == "e2"] == []
    world.log.marks.clear()
    await world.hub.marks.flush()
    assert world.log.marks == [Mark(SESSION, Position("e2", 6))]


async def test_new_log_is_noted_from_its_beginning(world: World) -> None:
    """What was noted of a session's old log does not keep the new one, which is shorter, from being noted."""
    old = await world.open()
    world.say(5)
    await world.hub.marks.flush()
    del world.log.records[SESSION]
    world.log.append(2)
    await world.open()
    await world.hub.marks.flush()

    assert len(old.restarts) == 1
    assert [mark.position for mark in world.log.marks] == [("e1", 5), ("e2", 2)]


@pytest.mark.parametrize("oldest", [4, 5, 12])
async def test_trimmed_past_a_socket(world: World, oldest: int) -> None:
    """A log that no longer reaches back to a socket is never continued over the hole in silence."""
    socket = await world.open()
    world.say(2)
    world.log.append(10)
    world.log.trim(oldest=oldest)
    world.say()
    await settle()

    assert socket.seqs == [1, 2]
    assert socket.restarts == ["the session's log no longer reaches back"]
    assert world.hub.sessions == 0


async def test_trimmed_up_to_a_socket(world: World) -> None:
    """A log that reaches back exactly to what the socket lacks is continued."""
    socket = await world.open()
    world.say(2)
    world.log.append(3)
    world.log.trim(oldest=3)
    world.say()
    await settle()

    assert socket.seqs == all_up_to(6)
    assert socket.restarts == []


async def test_a_publish_of_another_log_during_a_catch_up(world: World) -> None:
    """A late publish of a log that is gone holds up no catch-up, and keeps it from no message."""
    late = world.log.append(2)
    world.log.records.clear()
    world.log.append(2)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    resume = world.log.take("resume")
    resume.execute()
    world.publish(late)
    world.say()
    resume.finish()
    world.log.release()
    await opening
    await settle()

    assert socket.seqs == [1, 2, 3]
    assert socket.restarts == []


async def test_rewound_log(world: World) -> None:
    """A Redis that lost its last writes counts anew from further back: the sockets have to come back."""
    socket = await world.open()
    world.say(5)
    record = world.log.record()
    record.head, record.entries = 3, record.entries[:3]
    await world.hub.check_positions(0)
    await settle()

    assert len(socket.restarts) == 1
    assert world.hub.sessions == 0


# Looking for silent losses.


async def test_check_finds_what_nothing_reports(world: World) -> None:
    """The last message of a session, lost on its way, is found by the next check."""
    socket = await world.open()
    world.log.append(7)
    await world.hub.check_positions(0)
    await settle()

    assert socket.seqs == all_up_to(7)
    assert world.hub.gaps == 1


async def test_check_leaves_healthy_sockets_alone(world: World) -> None:
    """A check of sockets that have everything reads no log and closes nobody."""
    socket, slow = await world.open(), await world.open()
    world.say(2)
    slow.pause()
    world.say()
    await world.hub.check_positions(0)
    await settle()

    assert world.log.calls.count("read") == 0
    assert (socket.restarts, slow.restarts, world.hub.gaps) == ([], [], 0)
    assert world.log.renewed == []


async def test_check_that_is_overtaken(world: World) -> None:
    """An answer that is older than what has been pushed since closes nobody, and costs no message."""
    socket = await world.open()
    world.say()
    world.gate()
    check = asyncio.create_task(world.hub.check_positions(0))
    await settle()
    heads = world.log.take("heads")
    heads.execute()
    world.say(2)
    heads.finish()
    world.log.release()
    await check
    await settle()
    world.say()

    assert socket.seqs == all_up_to(4)
    assert (socket.restarts, world.hub.gaps) == ([], 0)


@pytest.mark.parametrize("known_before", [False, True])
async def test_check_that_is_overtaken_by_a_new_log(world: World, known_before: bool) -> None:
    """An answer from before the session's log began does not close the socket that began it."""
    if known_before:
        world.log.record()
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    check = asyncio.create_task(world.hub.check_positions(0))
    await settle()
    heads = world.log.take("heads")
    heads.execute()
    world.log.records.clear()
    world.log.release()
    await opening
    heads.finish()
    await check
    await settle()
    world.say()

    assert socket.restarts == []
    assert socket.seqs == [1]


async def test_check_of_a_session_that_is_gone(world: World) -> None:
    """A session that Redis has forgotten has its sockets come back."""
    socket = await world.open()
    world.say()
    world.log.records.clear()
    await world.hub.check_positions(0)
    await settle()

    assert len(socket.restarts) == 1
    assert world.hub.sessions == 0


async def test_check_of_a_session_that_cannot_be_read(world: World) -> None:
    """One session with damaged keys is named, and keeps no other from being looked after."""
    damaged = await world.open(session=f"{SESSION}-damaged")
    socket = await world.open()
    world.log.append()
    world.log.unreadable.add(f"{SESSION}-damaged")
    await world.hub.check_positions(0)
    await settle()

    assert socket.seqs == [1]
    assert damaged.restarts == []
    assert world.logger.names == ["position_unreadable"]


async def test_check_puts_off_expiry(world: World) -> None:
    """Sessions with sockets are in use, and must not expire under them."""
    await world.open()
    await world.hub.check_positions(0, renew=True)

    assert world.log.renewed == [SESSION]


async def test_check_of_many_sessions_goes_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are compared some at a time, each once, so that Redis and the pod are never busy for long."""
    monkeypatch.setattr(hub_module, "_SESSIONS_A_CHECK", 2)
    sockets = [await world.open(session=f"{SESSION}-{number}") for number in range(5)]
    for number in range(5):
        world.log.append(session=f"{SESSION}-{number}")
    await world.hub.check_positions(0)
    await settle()

    assert world.log.calls.count("heads") == 3
    assert [socket.seqs for socket in sockets] == [[1]] * 5


async def test_check_without_sessions(world: World) -> None:
    """A pod with no socket asks Redis nothing."""
    await world.hub.check_positions(3_600)

    assert world.log.calls == []


async def test_check_while_redis_is_away(world: World) -> None:
    """The caller is told how many sessions were not compared, so that it asks again; nobody is closed."""
    sockets = [await world.open(session=f"{SESSION}-{number}") for number in range(3)]
    world.log.refusal = RedisUnavailable("away")

    assert await world.hub.check_positions(0) == 3
    assert [socket.restarts for socket in sockets] == [[], [], []]
    world.log.refusal = None
    assert await world.hub.check_positions(0) == 0


async def test_check_while_one_server_is_away(world: World) -> None:
    """Where there are several, the sessions of the others are looked after as ever."""
    sockets = [await world.open(session=f"{SESSION}-{number}") for number in range(3)]
    for number in range(3):
        world.log.append(session=f"{SESSION}-{number}")
    world.log.away.add(f"{SESSION}-1")
    assert await world.hub.check_positions(0) == 1
    await settle()
    assert [socket.seqs for socket in sockets] == [[1], [], [1]]
    world.log.away.clear()
    assert await world.hub.check_positions(0) == 0
    await settle()

    assert [socket.seqs for socket in sockets] == [[1], [1], [1]]
    assert world.logger.names == []


async def test_channels_are_all_sessions_with_sockets(world: World) -> None:
    """What has to be subscribed to again after a lost connection, the sessions that are being opened too."""
    names = [f"{SESSION}-{number}" for number in range(3)]
    sockets = [await world.open(session=name) for name in names]
    world.gate()
    opening = world.opening(world.socket())
    await settle()
    sockets[1].leave()
    assert world.hub.channels() == [names[0], names[2], SESSION]
    world.log.release()
    await opening

    assert set(world.hub.channels()) == world.log.subscribed


# Leaving.


async def test_the_last_to_leave_unsubscribes(world: World) -> None:
    """A session without sockets costs the pod nothing more; what it was sent is noted."""
    one, two = await world.open(), await world.open()
    world.say(3)
    one.leave()
    assert world.log.subscribed == {SESSION}
    two.leave()
    await settle()

    assert world.log.subscribed == set()
    assert world.hub.sessions == 0
    assert world.log.marks == [Mark(SESSION, Position("e1", 3))]
    await world.hub.marks.flush()
    assert len(world.log.marks) == 1


async def test_leaving_while_another_opens(world: World) -> None:
    """The session stays for a newcomer whose history is still being read."""
    world.say()
    leaving = await world.open()
    world.gate()
    newcomer = world.socket()
    opening = world.opening(newcomer)
    await settle()
    leaving.leave()
    assert world.log.subscribed == {SESSION}
    world.publish(world.log.append())
    world.log.release()
    await opening
    await settle()

    assert newcomer.seqs[-1] == 2
    assert newcomer.restarts == []


async def test_leaving_during_a_catch_up(world: World) -> None:
    """A socket that goes while its log is read leaves nothing behind: no feed, no subscription."""
    socket = await world.open()
    world.gate()
    world.log.append()
    world.say()
    await settle()
    socket.leave()
    world.log.release()
    await settle()

    assert socket.written == []
    assert world.hub.sessions == 0
    assert world.log.subscribed == set()
    assert world.hub._tasks == set()


async def test_leaving_while_redis_is_away(world: World) -> None:
    """Neither does one that goes while its catch-up waits for Redis."""
    socket = await world.open()
    world.gate()
    world.log.append()
    world.say()
    await settle()
    world.store.up = False
    world.log.take("read").fail()
    await settle()
    socket.leave()
    world.store.up = True
    await settle()

    assert world.hub.sessions == 0
    assert world.log.subscribed == set()


async def test_leaving_and_coming_back_during_a_catch_up(world: World) -> None:
    """What an old catch-up brings late does not disturb the session's next sockets."""
    old = await world.open()
    world.gate()
    world.log.append()
    world.say()
    await settle()
    old.leave()
    read = world.log.take("read")
    world.log.release()
    new = await world.open(Position("e1", 0))
    read.finish()
    await settle()
    world.say()

    assert new.seqs == [1, 2, 3]
    assert world.log.subscribed == {SESSION}


async def test_leaving_twice(world: World) -> None:
    """A second goodbye does not take the session from the sockets that came since."""
    old = await world.open()
    feed = old.feed
    assert feed is not None
    old.leave()
    new = await world.open()
    world.hub.detach(feed, old)
    world.say()

    assert new.seqs == [1]
    assert world.log.subscribed == {SESSION}


# What has been sent.


async def test_flush_notes_what_was_sent(world: World) -> None:
    """Each session's furthest socket is noted once, and only again when there is more."""
    slow, _quick = await world.open(), await world.open()
    slow.pause()
    world.say(2)
    await world.hub.marks.flush()
    await world.hub.marks.flush()
    world.say()
    await world.hub.marks.flush()

    assert [mark.position.seq for mark in world.log.marks] == [2, 3]


async def test_history_is_noted_too(world: World) -> None:
    """What a socket was sent when it opened counts as what it was sent live."""
    world.log.append(5)
    await world.open()
    await world.hub.marks.flush()

    assert world.log.marks == [Mark(SESSION, Position("e1", 5))]


async def test_flush_notes_only_what_left_the_process(world: World) -> None:
    """What is still in a buffer here would be lost with this process: it is noted when it has left."""
    socket = await world.open()
    world.say()
    socket.unsent = True
    await world.hub.marks.flush()
    assert world.log.marks == []
    socket.unsent = False
    await world.hub.marks.flush()

    assert world.log.marks == [Mark(SESSION, Position("e1", 1))]


async def test_an_ack_is_noted(world: World) -> None:
    """What a client has acknowledged is noted with the next flush, not only with the next message."""
    socket = await world.open()
    world.say()
    socket.unsent = True  # as of a client that acks, and has not yet
    await world.hub.marks.flush()
    world.hub.marks._due.clear()
    socket.unsent = False
    assert socket.feed is not None
    world.hub.acked(socket.feed, 1)
    await world.hub.marks.flush()

    assert world.log.marks == [Mark(SESSION, Position("e1", 1))]


@pytest.mark.parametrize("alone", [True, False])
async def test_flush_while_redis_is_away(world: World, alone: bool) -> None:
    """What could not be noted is noted the next time."""
    socket = await world.open()
    if not alone:
        (await world.open()).unsent = True
    world.say()
    world.log.refusal = RedisUnavailable("away")
    with pytest.raises(RedisUnavailable):
        await world.hub.marks.flush()
    world.log.refusal = None
    await world.hub.marks.flush()

    assert socket.seqs == [1]
    assert world.log.marks == [Mark(SESSION, Position("e1", 1))]


async def test_a_goodbye_is_noted_at_once(world: World) -> None:
    """A client that is told goodbye may come back without a cursor at once, and is sent nothing twice."""
    socket = await world.open()
    world.say(2)
    assert socket.feed is not None
    noting = world.hub.detach(socket.feed, socket)
    assert noting is not None
    await noting
    again = await world.open()

    assert again.seqs == []
    assert again.resumed is not None
    assert again.resumed.status == "fresh"


async def test_a_goodbye_while_redis_is_away(world: World) -> None:
    """It is not held up by that, and the next flush notes it for the sockets that stay."""
    socket, _other = await world.open(), await world.open()
    world.say()
    await world.hub.marks.flush()
    world.say()
    world.hub.marks._due.clear()
    world.log.refusal = RedisUnavailable("away")
    assert socket.feed is not None
    noting = world.hub.detach(socket.feed, socket)
    assert noting is not None
    await noting
    assert world.logger.names == ["mark_lost"]
    world.log.refusal = None
    await world.hub.marks.flush()

    assert [mark.position.seq for mark in world.log.marks] == [1, 2]


# Replacing.


async def test_newer_connections_replace_older(world: World) -> None:
    """Only what is older than the generation told is closed: neither the newest nor one that came since."""
    old, older, newest = await world.open(), await world.open(), await world.open()
    later = await world.open()
    assert [socket.generation for socket in (old, older, newest, later)] == [1, 2, 3, 4]

    world.push(b"!3")

    assert [socket.replacements for socket in (old, older, newest, later)] == [1, 1, 0, 0]


async def test_a_socket_that_catches_up_is_replaced(world: World) -> None:
    """Being busy with history is no protection."""
    world.log.append(5)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    world.log.take("resume").finish()
    await opening
    world.push(b"!2")
    world.log.release()
    await settle()

    assert socket.replacements == 1
    assert world.hub.sessions == 0


@pytest.mark.parametrize(("told", "replaced"), [(b"!2", 1), (b"!1", 0)])
async def test_replaced_while_it_opens(world: World, told: bytes, replaced: int) -> None:
    """A word that overtakes the answer to the older connection is not lost on it."""
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    resume = world.log.take("resume")
    resume.execute()  # it is the first
    world.push(told)
    resume.finish()
    await opening
    await settle()

    assert socket.replacements == replaced
    assert world.hub.sessions == 1 - replaced


async def test_generations_begin_anew_with_the_log(world: World) -> None:
    """A socket of a new log is not closed for what was said of the old one's."""
    old = await world.open()
    world.push(b"!1")
    world.push(b"!7")
    assert old.replacements == 1
    waiting = await world.open()
    waiting.generation = 7
    world.push(b"!7")
    del world.log.records[SESSION]
    new = await world.open()
    await settle()

    assert (waiting.replacements, len(waiting.restarts)) == (0, 1)
    assert new.generation == 1
    assert new.replacements == 0


# Background.


async def test_a_catch_up_that_breaks_is_logged(world: World) -> None:
    """A mistake in the background does not vanish without a word."""
    await world.open()
    world.log.append()
    world.log.refusal = ZeroDivisionError("a mistake")
    world.say()
    await settle()

    assert world.logger.names == ["hub_task_died"]


# Everything at once.

NUMBERS = st.integers(0, 9)


class Chaos:
    """A hub, some sockets, and messages that are on their way, lost, late and twice."""

    def __init__(self, *, loses: bool, log: FakeSessionLog | None = None) -> None:
        self.loses = loses
        self.world = World(log)
        self.world.gate()
        self.under_way: list[Batch] = []
        self.arrived: list[Batch] = []
        self.lost: list[Batch] = []
        self.sockets: list[FakeSocket] = []
        self.openings: list[asyncio.Task[bool]] = []
        self.checks: list[asyncio.Task[int] | asyncio.Task[None]] = []

    def begin(self) -> None:
        self.world.log.append(2)
        for number in range(2):
            self.open(number)

    def do(self, name: str, number: int) -> None:
        getattr(self, name)(number)

    def append(self, number: int) -> None:
        self.under_way.append(self.world.log.append(1 + number % 3))

    def arrive(self, _number: int) -> None:
        if self.under_way:
            self.arrived.append(self.under_way.pop(0))
            self.world.publish(self.arrived[-1])

    def lose(self, _number: int) -> None:
        if self.loses and self.under_way:
            self.lost.append(self.under_way.pop(0))

    def repeat(self, number: int) -> None:
        if self.arrived:
            self.world.publish(self.arrived[number % len(self.arrived)])

    def open(self, number: int) -> None:
        socket = self.world.socket()
        head = self.world.log.record().head
        cursor = Position("e1", number % (head + 1)) if number % 2 else None
        self.openings.append(self.world.opening(socket, cursor))
        self.sockets.append(socket)

    def leave(self, number: int) -> None:
        if self.sockets:
            self.sockets[number % len(self.sockets)].leave()

    def pause(self, number: int) -> None:
        if self.sockets:
            self.sockets[number % len(self.sockets)].pause()

    def unpause(self, number: int) -> None:
        if self.sockets:
            self.sockets[number % len(self.sockets)].unpause()

    def execute(self, number: int) -> None:
        if self.world.log.pending:
            self.world.log.pending[number % len(self.world.log.pending)].execute()

    def finish(self, number: int) -> None:
        if self.world.log.pending:
            self.world.log.pending.pop(number % len(self.world.log.pending)).finish()

    def fail(self, number: int) -> None:
        if self.world.log.pending:
            self.world.log.pending.pop(number % len(self.world.log.pending)).fail()

    def check(self, _number: int) -> None:
        self.checks.append(asyncio.create_task(self.world.hub.check_positions(0)))

    def flush(self, _number: int) -> None:
        self.checks.append(asyncio.create_task(self.world.hub.marks.flush()))

    async def end(self) -> None:
        """All that is under way arrives, the sockets read, and if something was lost there is one check."""
        for socket in self.sockets:
            socket.unpause()
        while self.under_way:
            self.arrive(0)
        self.world.log.release()
        await asyncio.gather(*self.openings, *self.checks, return_exceptions=True)
        await settle()
        if self.lost:
            await self.world.hub.check_positions(0)
            await settle()

    def judge(self) -> None:
        record = self.world.log.record()
        for socket in self.sockets:
            assert socket.restarts == []
            if socket.resumed is None:
                continue
            start = socket.resumed.start
            got = socket.seqs
            assert got == list(range(start + 1, start + 1 + len(got)))
            if socket.feed is not None:
                assert socket.seq == record.head
                assert start + len(got) == record.head
        here = any(socket.feed is not None for socket in self.sockets)
        assert self.world.hub.sessions == here
        assert self.world.log.subscribed == ({SESSION} if here else set())
        assert self.world.hub._tasks == set()
        assert record.sent <= max((socket.seq for socket in self.sockets), default=0)
        assert self.world.logger.names.count("hub_task_died") == 0


DEEDS = st.sampled_from(
    [
        *["append", "arrive", "finish"] * 4,
        *["lose", "repeat", "open", "pause", "unpause", "execute"] * 2,
        *["leave", "fail", "check", "flush"],
    ]
)
TURNS = st.sampled_from([0, 1, 1, 2, 4])


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(DEEDS, NUMBERS, TURNS), min_size=30, max_size=120), st.booleans())
def test_whatever_happens_each_message_comes_once_and_in_order(
    deeds: list[tuple[str, int, int]], loses: bool
) -> None:
    """Lost, late, repeated and overtaken: every socket has its whole log, once and in order.

    Where publishes were lost it takes one check, which is what that is for; otherwise it takes nothing.
    """

    async def play() -> None:
        chaos = Chaos(loses=loses)
        chaos.begin()
        for name, number, turns in deeds:
            chaos.do(name, number)
            for _ in range(turns):
                await asyncio.sleep(0)
        await chaos.end()
        chaos.judge()

    asyncio.run(play())
