"""The hub while a log goes on under another epoch: after a restart, a failover, a move of its slot.

What the new server has got, goes on; who was sent more than that, has to come back.
"""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.position import Position
from backplane.session_log import Resumed
from gateway import hub as hub_module
from gateway.feed import Subscriber
from tests.unit.gateway.fakes import SESSION, FakeSessionLog, Record, settle
from tests.unit.gateway.test_hub import DEEDS, NUMBERS, TURNS, Chaos, World, all_up_to


@pytest.fixture
async def world() -> World:
    return World()


async def test_live_sockets_go_on_in_a_new_epoch(world: World) -> None:
    """A server that lost nothing goes on under another epoch: sockets stay, nothing is missing or twice."""
    one, two = await world.open(), await world.open()
    world.say(3)
    for change in range(4):
        world.log.restart()
        world.say(1 + change % 2)
        world.say()
        await settle()

    assert one.seqs == two.seqs == all_up_to(13)
    assert one.texts == two.texts == all_up_to(13)
    assert one.epochs == ["e1"] * 3 + ["e2"] * 2 + ["e3"] * 3 + ["e4"] * 2 + ["e5"] * 3
    assert one.restarts == two.restarts == []
    assert world.log.calls.count("read") == 4  # one for each change, for all sockets together
    reads = world.log.calls.count("read")
    world.say()
    assert one.seqs == two.seqs == all_up_to(14)
    assert world.log.calls.count("read") == reads  # live again


async def test_a_new_epoch_whose_publish_was_lost(world: World) -> None:
    """The check sees the epoch where pub/sub told of none."""
    socket = await world.open()
    world.say(2)
    world.log.restart()
    world.log.append(5)
    assert await world.hub.check_positions(0) == 0
    await settle()
    world.say()

    assert socket.seqs == all_up_to(8)
    assert socket.epochs == ["e1"] * 2 + ["e2"] * 6
    assert socket.restarts == []


async def test_a_restart_without_new_messages_disturbs_nobody(world: World) -> None:
    """As long as nothing was appended, positions are what they were."""
    socket = await world.open()
    world.say(2)
    world.log.restart()
    await world.hub.check_positions(0)
    await settle()

    assert (socket.restarts, world.hub.gaps, world.log.calls.count("read")) == ([], 0, 0)


@pytest.mark.parametrize("told_by", ["publish", "check", "newcomer"])
@pytest.mark.parametrize("level", [False, True])
async def test_only_sockets_ahead_of_what_stands_come_back(world: World, level: bool, told_by: str) -> None:
    """What Redis lost and a socket has cannot be taken back: that one is told to come back, no other is."""
    ahead, slow = await world.open(), await world.open()
    world.say(3)
    held = world.log.snapshot()
    slow.pause()
    world.say(2)
    world.log.restart(held)
    other = await world.open(Position("e1", 3)) if level else slow
    lost = set(ahead.texts[3:])

    if told_by == "publish":
        world.say(2)
    else:
        world.log.append(2)
        if told_by == "check":
            await world.hub.check_positions(0)
        else:
            newcomer = await world.open(Position("e1", 3))
            await settle()
            assert newcomer.seqs == [4, 5]
    await settle()
    slow.unpause()
    await settle()

    assert ahead.restarts == ["Redis lost the end of the session's log"]
    assert other.restarts == slow.restarts == []
    assert slow.seqs == all_up_to(5)
    assert other.seqs[-2:] == [4, 5]
    assert not lost & {*slow.texts, *other.texts}
    world.say()
    assert other.seqs[-1] == slow.seqs[-1] == 6


async def test_a_rewound_log_is_seen_before_anything_is_appended(world: World) -> None:
    """Who is ahead comes back as soon as the positions are compared; who is not, stays where it is."""
    ahead, slow = await world.open(), await world.open()
    world.say(3)
    held = world.log.snapshot()
    slow.pause()
    world.say(2)
    world.log.restart(held)
    level = await world.open(Position("e1", 3))
    await world.hub.check_positions(0)
    await settle()

    assert ahead.restarts == ["Redis lost the end of the session's log"]
    assert level.restarts == slow.restarts == []
    slow.unpause()
    await settle()
    world.say()
    await settle()
    assert slow.seqs == all_up_to(4)
    assert level.seqs == [4]
    assert slow.restarts == []


async def test_a_client_that_was_ahead_is_told_and_goes_on(world: World) -> None:
    """It comes back with a cursor that is of no log any more: reset, and all that is there."""
    ahead = await world.open()
    world.say(3)
    held = world.log.snapshot()
    world.say(2)
    world.log.restart(held)
    world.say()
    await settle()
    again = await world.open(Position("e1", 5))

    assert len(ahead.restarts) == 1
    assert again.resumed is not None
    assert again.resumed.status == "reset"
    assert again.seqs == all_up_to(4)
    assert again.texts == [1, 2, 3, 6]


async def test_seqs_alike_are_not_messages_alike(world: World) -> None:
    """A rewound log that has grown to the very same length is another one for all that."""
    ahead = await world.open()
    world.say(3)
    held = world.log.snapshot()
    world.say(2)
    world.log.restart(held)
    world.log.append(2)
    await world.hub.check_positions(0)
    await settle()

    assert ahead.seq == world.log.record().head == 5
    assert len(ahead.restarts) == 1


async def test_rewound_again_and_again(world: World) -> None:
    """Epochs that were lost themselves are of no log; of those that are left, the lowest end counts."""
    socket = await world.open()
    world.say(3)
    one = world.log.snapshot()
    world.log.restart()
    world.say(2)
    await settle()
    second = world.socket()
    await second.attach()
    world.log.restart(one)  # the second epoch was never there
    world.log.append(4)
    await world.hub.check_positions(0)
    await settle()
    assert len(socket.restarts) == len(second.restarts) == 1

    third = await world.open(Position("e1", 3))
    assert third.texts == [6, 7, 8, 9]
    world.log.restart()
    world.say()
    await settle()
    assert third.texts == [6, 7, 8, 9, 10]
    assert third.restarts == []


@pytest.mark.parametrize("executed", ["before", "after"])
async def test_a_socket_that_is_catching_up_goes_on(world: World, executed: str) -> None:
    """Its pages may be of before and after the change; what came live meanwhile is of after."""
    world.log.append(4)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    read = world.log.take("read")
    if executed == "before":
        read.execute()
    world.log.restart()
    world.say(2)
    read.finish()
    await settle()
    world.say()
    world.log.release()
    await settle()
    world.say()

    assert socket.texts == socket.seqs == all_up_to(8)
    assert socket.epochs[-4:] == ["e2"] * 4
    assert socket.restarts == []


async def test_a_socket_that_is_catching_up_beyond_what_stands(world: World) -> None:
    """What it was sent of its history is lost: it comes back, though it never was live."""
    world.log.append(2)
    held = world.log.snapshot()
    world.log.append(4)
    world.gate()
    socket = world.socket()
    opening = world.opening(socket)
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    assert socket.seqs == [1, 2, 3]
    world.log.take("read").fail()
    world.log.restart(held)
    await settle()
    world.log.append(9)
    world.log.release()
    await settle()

    assert socket.seqs == [1, 2, 3]
    assert len(socket.restarts) == 1
    assert world.hub.sessions == 0


@pytest.mark.parametrize("lost", [False, True])
async def test_a_new_socket_sees_the_epoch_first(world: World, lost: bool) -> None:
    """What it is told makes the pod look where the others stand, the slow and the busy ones too."""
    live, slow = await world.open(), await world.open()
    world.say(2)
    held = world.log.snapshot()
    slow.pause()
    world.say()
    world.gate()
    busy = world.socket()
    world.log.append(3)
    opening = world.opening(busy, Position("e1", 0))
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    world.log.take("read").fail()  # with the connection
    assert busy.seqs == [1, 2, 3]
    world.log.restart(held if lost else None)
    world.log.append(2)
    world.log.release()
    newcomer = await world.open(Position("e1", 2))
    slow.unpause()
    await settle()
    world.say()

    head = world.log.record().head
    assert [len(socket.restarts) for socket in (live, slow, busy)] == [lost, False, lost]
    assert slow.seqs == all_up_to(head)
    assert newcomer.seqs == all_up_to(head)[2:]
    if not lost:
        assert live.seqs == busy.seqs == all_up_to(head)


async def test_a_late_publish_of_an_ended_epoch(world: World) -> None:
    """It is known by then, or was lost: nobody is sent it, and nobody is closed for it."""
    socket = await world.open()
    late = world.log.append(2)
    world.log.restart()
    world.say()
    await settle()
    assert socket.seqs == [1, 2, 3]
    world.publish(late)
    await settle()
    world.say()

    assert socket.seqs == all_up_to(4)
    assert socket.restarts == []


@pytest.mark.parametrize("crowd", [0, 8])
async def test_two_epochs_in_one_read(world: World, monkeypatch: pytest.MonkeyPatch, crowd: int) -> None:
    """Each message goes out under its own epoch, also where a crowd's are gathered before."""
    monkeypatch.setattr(hub_module, "_CROWD", crowd)
    socket = await world.open()
    world.say()
    world.say()
    world.log.restart()
    world.say()
    world.say()
    await settle()

    assert socket.texts == socket.seqs == all_up_to(4)
    assert socket.epochs == ["e1", "e1", "e2", "e2"]


@pytest.mark.parametrize("crowd", [0, 8])
async def test_a_gap_in_one_read(world: World, monkeypatch: pytest.MonkeyPatch, crowd: int) -> None:
    """What is gathered is not taken for consecutive."""
    monkeypatch.setattr(hub_module, "_CROWD", crowd)
    socket = await world.open()
    world.say()
    world.log.append()
    world.say()
    await settle()

    assert socket.texts == socket.seqs == all_up_to(3)


async def test_marks_go_on_under_the_new_epoch(world: World) -> None:
    """What was noted under the old one does not keep the new one's from being noted."""
    socket = await world.open()
    world.say(3)
    await world.hub.marks.flush()
    world.log.restart()
    world.say(2)
    await settle()
    await world.hub.marks.flush()

    assert [mark.position for mark in world.log.marks] == [("e1", 3), ("e2", 5)]
    assert world.log.record().sent == 5
    assert socket.restarts == []


async def test_a_mark_of_before_says_no_more_than_what_stands(world: World) -> None:
    """What Redis lost and a socket was sent hides nothing of what comes in its place."""
    ahead = await world.open()
    world.say(3)
    held = world.log.snapshot()
    world.say(4)
    world.log.restart(held)
    await world.hub.marks.flush()
    assert [mark.position for mark in world.log.marks] == [("e1", 7)]
    world.say(2)
    ahead.unsent = False
    await settle()
    assert len(ahead.restarts) == 1
    await world.hub.marks.flush()
    assert world.log.record().sent == 3
    again = await world.open()

    assert again.resumed is not None
    assert again.resumed.status == "replayed"
    assert again.texts == [8, 9]


async def test_a_neighbour_is_noted_after_one_that_was_ahead(world: World) -> None:
    """How far the lost one had been sent does not count as what the others were sent."""
    ahead, slow = await world.open(), await world.open()
    world.say(3)
    held = world.log.snapshot()
    slow.pause()
    world.say(5)
    await world.hub.marks.flush()
    world.log.restart(held)
    await world.hub.check_positions(0)
    await settle()
    assert len(ahead.restarts) == 1
    slow.unpause()
    await settle()
    world.say()
    await settle()
    world.log.marks.clear()
    await world.hub.marks.flush()

    assert slow.seqs == all_up_to(4)
    assert world.log.record().sent == 4


async def test_who_is_not_placed_yet_is_not_noted(world: World) -> None:
    """Until the log has said where a socket stands in a new epoch, its seq says nothing."""
    ahead = await world.open()
    world.say(3)
    held = world.log.snapshot()
    world.say(4)
    world.log.restart(held)
    world.log.append(9)
    world.gate()
    newcomer = world.socket()
    opening = world.opening(newcomer, Position("e1", 3))
    await settle()
    world.log.take("resume").finish()
    await opening
    await settle()
    flush = asyncio.create_task(world.hub.marks.flush())
    ahead.leave()
    await settle()
    world.log.release()
    await flush
    await settle()
    await world.hub.marks.flush()

    assert {mark.position.epoch for mark in world.log.marks} == {"e2"}
    assert [mark.position.seq for mark in world.log.marks] == [6, 12]  # the newcomer's, page by page


async def test_replaced_counts_anew_after_a_rewind(world: World) -> None:
    """Generations were lost too: a word about the old ones closes no connection that came since."""
    old, other = await world.open(), await world.open()
    held = world.log.snapshot()
    third = await world.open()
    world.push(b"!3")
    assert (old.replacements, other.replacements, third.replacements) == (1, 1, 0)
    world.log.restart(held)
    world.log.append()
    new = await world.open()

    assert new.generation == 3
    assert new.replacements == 0


# Everything at once.


class Remembering(FakeSessionLog):
    """Logs that remember what each connection was taken to have."""

    def __init__(self) -> None:
        super().__init__()
        self.had: list[tuple[Resumed, list[int]]] = []

    def _resume(self, session: str, cursor: Position | None, user: str, reread: int | None) -> Resumed | None:
        resumed = super()._resume(session, cursor, user, reread)
        assert resumed is not None
        self.had.append((resumed, texts(self.record(session))[: resumed.start]))
        return resumed

    def before(self, resumed: Resumed) -> list[int]:
        """The messages that came before a connection's first, when it was resumed."""
        return next(had for known, had in self.had if known is resumed)


def texts(record: Record) -> list[int]:
    return [int(entry.partition(b'"text":')[2].partition(b",")[0]) for entry in record.entries]


def epochs(record: Record) -> set[str]:
    return {record.epoch, *(ended.epoch for ended in record.ended)}


class Failovers(Chaos):
    """As `Chaos`, and servers that go on with the log, with all of it or without its end."""

    def __init__(self, *, loses: bool) -> None:
        self.log = Remembering()
        super().__init__(loses=loses, log=self.log)
        self.log.record()
        self.held = [self.log.snapshot()]
        self.gone: set[int] = set()  # what was lost at some time
        self.epochs_ever: set[str] = set()
        self.epochs_gone: set[str] = set()  # lost with a server, or ended too long ago
        self.stood_in: dict[Subscriber, set[str]] = {}  # the epochs that each socket was taken to be in
        self.changes = 0

    def do(self, name: str, number: int) -> None:
        for feed in self.world.hub._feeds.values():
            for socket in feed.sockets:
                self.stood_in.setdefault(socket, set()).add(str(feed.epoch))
            for group in feed.catching:
                for socket in group.sockets:
                    self.stood_in.setdefault(socket, set()).add(group.position.epoch)
        super().do(name, number)
        known = epochs(self.log.record())
        self.epochs_ever |= known
        self.epochs_gone |= self.epochs_ever - known

    def append(self, number: int) -> None:
        super().append(number)
        self.held.append(self.log.snapshot())

    def flush(self, number: int) -> None:
        super().flush(number)
        self.held.append(self.log.snapshot())

    def open(self, number: int) -> None:
        record = self.log.record()
        self.held.append(self.log.snapshot())
        socket = self.world.socket()
        known = [Position(record.epoch, record.head), *record.ended]
        epoch, last = known[number % len(known)]
        cursor = Position(epoch, max(0, last - number % 3)) if number % 2 else None
        self.openings.append(self.world.opening(socket, cursor))
        self.sockets.append(socket)

    def go_on(self, number: int) -> None:
        """Another server with all there is; what is on its way may arrive, be asked again, or be lost."""
        self.changes += 1
        self.log.restart()
        if number % 2:
            self.cut(number)

    def rewind(self, number: int) -> None:
        """Another server that lacks the end; the connections to the old one are lost."""
        self.changes += 1
        before = self.log.record()
        self.log.restart(self.held[-1 - number % min(len(self.held), 6)])
        after = self.log.record()
        self.gone |= set(texts(before)) - set(texts(after))
        self.cut(number)

    def burst(self, number: int) -> None:
        """What arrives in one read."""
        for bit in (1, 2, 4):
            (self.lose if number & bit else self.arrive)(number)

    def leap(self, number: int) -> None:
        """Messages of two servers in one read: the first one gave the slot away, and the feed had both."""
        self.append(number)
        self.changes += 1
        self.log.restart()
        self.append(number)
        while self.under_way:
            self.arrive(number)

    def cut(self, number: int) -> None:
        while self.log.pending:
            self.fail(0)
        if number % 3:  # else what was published before arrives late
            self.lost += self.under_way
            self.under_way.clear()
        self.check(number)  # as a pod does when its connection is back

    async def end(self) -> None:
        await super().end()
        if self.changes:
            await self.world.hub.check_positions(0)
            await settle()

    def judge(self) -> None:
        record, log = self.log.record(), self.log
        whole = texts(record)
        seen: set[int] = set()
        for socket in self.sockets:
            if socket.resumed is None:
                continue
            had = log.before(socket.resumed)
            got = had + socket.texts
            seen |= set(got)
            start = socket.resumed.start
            assert socket.seqs == list(range(start + 1, start + 1 + len(socket.seqs)))
            for (epoch, seq), known in zip(socket.cursors, range(start + 1, len(got) + 1), strict=True):
                assert seq == known
                if record.standing(epoch) >= seq:  # the client may come back with it, and lacks nothing
                    assert got[:seq] == whole[:seq]
            if socket.restarts:
                stood_in = {socket.resumed.page.epoch} | self.stood_in.get(socket, set())
                assert set(got) & self.gone or stood_in & self.epochs_gone
            elif socket.feed is not None:
                assert got == whole
                assert not socket.cursors or record.standing(socket.cursors[-1].epoch) >= socket.seq
        assert set(whole[: record.sent]) <= seen, "noted as sent, and nobody was"
        here = any(socket.feed is not None for socket in self.sockets)
        assert self.world.hub.sessions == here
        assert log.subscribed == ({SESSION} if here else set())
        assert self.world.hub._tasks == set()
        assert "hub_task_died" not in self.world.logger.names


CHANGES = st.one_of(
    DEEDS, DEEDS, DEEDS, DEEDS, st.sampled_from(["go_on", "rewind", "rewind", "burst", "burst", "leap"])
)


@settings(max_examples=250, deadline=None)
@given(
    deeds=st.lists(st.tuples(CHANGES, NUMBERS, TURNS), min_size=20, max_size=100),
    loses=st.booleans(),
    crowd=st.sampled_from([8, 0, 1]),
)
def test_whatever_happens_sockets_have_what_the_log_has(
    deeds: list[tuple[str, int, int]], loses: bool, crowd: int
) -> None:
    """Servers that go on with all or with less: who was not told to come back has exactly the log, in order.

    Nobody is told to who had nothing that was lost, and was in no epoch that is forgotten; and a cursor that
    stands hides nothing from the client that comes back with it.
    """

    async def play() -> None:
        chaos = Failovers(loses=loses)
        chaos.begin()
        for name, number, turns in deeds:
            chaos.do(name, number)
            for _ in range(turns):
                await asyncio.sleep(0)
        await chaos.end()
        chaos.judge()

    with patch.object(hub_module, "_CROWD", crowd):  # with none, what is published is always gathered
        asyncio.run(play())
