"""Session logs as a pod reads them: where a connection resumes, what it is sent, what was sent before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link
from backplane.open_store import open_store
from backplane.position import Batch, Position
from backplane.redis_client import parse_redis_url
from backplane.router.transfer import Transfer
from backplane.session_log import Live, Mark, Replaced, Resumed, SessionLog, parse_push
from backplane.settings import Settings
from backplane.store import Store
from tests.support.sessions import begun
from tests.support.valkey import Client, eventually, running

SETTINGS = Settings()
KEYS = SETTINGS.keys()
LIST = KEYS.callbacks("acme")
SESSION = KEYS.session(LIST, "s-1")


class Desk:
    """A pod's view of logs, and a router to write them."""

    def __init__(self, store: Store, redis: Client, settings: Settings = SETTINGS) -> None:
        self.store = store
        self.redis = redis
        self.log = SessionLog(store, store, KEYS, settings)
        self._mover = Transfer(store, store, KEYS, settings, structlog.get_logger())
        self._said = 0

    async def say(self, *texts: object, session_id: str = "s-1", size: int = 0) -> None:
        """Have the router append answers to a session's log."""
        for text in texts:
            self._said += 1
            answer = str(text).ljust(size, ".")
            callback = {
                "action_id": f"a-{self._said}",
                "session_id": session_id,
                "result": {"response": answer},
            }
            self.redis.lpush(LIST, json.dumps(callback))
        assert not await self._mover.drain(LIST, "acme", 100)

    async def resume(self, cursor: Position | None = None) -> Resumed:
        return await self.log.resume(SESSION, cursor)

    async def reread(self, cursor: Position, seq: int) -> Resumed:
        return await self.log.resume(SESSION, cursor, reread=seq)

    async def epoch(self) -> str:
        return (await begun(self.log, SESSION)).epoch


@pytest.fixture
def desk(store: Store, redis_client: Client) -> Desk:
    return Desk(store, redis_client)


@pytest.fixture
def short(store: Store, redis_client: Client) -> Desk:
    """With logs of three messages."""
    return Desk(store, redis_client, replace(SETTINGS, session_log_max_entries=3))


def said(entries: list[bytes]) -> list[str]:
    return [json.loads(entry + b'"":0}}')["data"]["response"].rstrip(".") for entry in entries]


def shape(resumed: Resumed) -> tuple[Any, ...]:
    """All of it that a test can know beforehand, but the generation."""
    assert resumed.page.first == resumed.start + 1
    return resumed.status, resumed.start, resumed.head, resumed.oldest, said(resumed.page.entries)


# Resume without a cursor: store and forward.


async def test_a_new_session_begins_fresh(desk: Desk) -> None:
    """The first connection of a session finds nothing waiting, and a log of its own."""
    resumed = await desk.resume()
    assert shape(resumed) == ("fresh", 0, 0, 1, [])
    assert resumed.page.epoch
    assert (await desk.resume()).page.epoch == resumed.page.epoch


async def test_what_no_socket_was_sent_is_waiting(desk: Desk) -> None:
    """Answers that came while nobody was there are sent to whoever comes."""
    await desk.say("a", "b")
    assert shape(await desk.resume()) == ("replayed", 0, 2, 1, ["a", "b"])


async def test_what_a_socket_was_sent_is_not_sent_again(desk: Desk) -> None:
    """Without a cursor a client gets what comes after the watermark."""
    await desk.say("a", "b", "c")
    await desk.log.mark_sent([Mark(SESSION, Position(await desk.epoch(), 2))])
    assert shape(await desk.resume()) == ("replayed", 2, 3, 1, ["c"])
    await desk.log.mark_sent([Mark(SESSION, Position(await desk.epoch(), 3))])
    assert shape(await desk.resume()) == ("fresh", 3, 3, 1, [])


async def test_the_watermark_never_moves_backwards(desk: Desk) -> None:
    """A slow pod's late note makes nobody get messages again."""
    await desk.say("a", "b", "c")
    epoch = await desk.epoch()
    await desk.log.mark_sent([Mark(SESSION, Position(epoch, 3)), Mark(SESSION, Position(epoch, 1))])
    await desk.log.mark_sent([Mark(SESSION, Position(epoch, 2))])
    assert (await desk.resume()).start == 3


async def test_a_watermark_of_another_epoch_is_ignored(desk: Desk) -> None:
    """What was sent of a log that is gone says nothing about the new one."""
    await desk.say("a", "b")
    await desk.log.mark_sent([Mark(SESSION, Position("another", 2))])
    assert shape(await desk.resume()) == ("replayed", 0, 2, 1, ["a", "b"])


async def test_a_watermark_begins_no_session(desk: Desk) -> None:
    """A note about a forgotten session leaves nothing behind."""
    await desk.log.mark_sent([Mark(SESSION, Position("e1", 2))])
    await desk.log.mark_sent([])
    assert not desk.redis.exists(SESSION)


async def test_a_watermark_beyond_the_head_hides_nothing(desk: Desk) -> None:
    """After Redis lost its last writes, what pods sent of them says nothing about those that come instead."""
    await desk.say("a")
    await desk.log.mark_sent([Mark(SESSION, Position(await desk.epoch(), 9))])
    assert shape(await desk.resume()) == ("fresh", 1, 1, 1, [])
    await desk.say("b")
    assert shape(await desk.resume()) == ("replayed", 1, 2, 1, ["b"])


async def test_many_marks_at_once(desk: Desk) -> None:
    """More than one script call takes, each to its own session."""
    sessions = [KEYS.session(LIST, f"s-{n}") for n in range(450)]
    for n in range(450):
        await desk.say(n, session_id=f"s-{n}")
    positions = await desk.log.heads(sessions)
    await desk.log.mark_sent(
        Mark(name, position)
        for name, position in zip(sessions, positions, strict=True)
        if isinstance(position, Position)
    )
    assert {desk.redis.hget(name, "d") for name in sessions} == {b"1"}


async def test_a_waiting_log_that_was_trimmed_is_a_reset(short: Desk) -> None:
    """Without a cursor too, a hole is told: what is left is sent, and from where."""
    await short.say(*"abcde")
    assert shape(await short.resume()) == ("reset", 2, 5, 3, ["c", "d", "e"])


async def test_a_waiting_log_that_expired_is_a_reset(desk: Desk) -> None:
    """Nothing is left, and the client is told that there was something."""
    await desk.say("a", "b")
    desk.redis.delete(f"{SESSION}:log")
    assert shape(await desk.resume()) == ("reset", 2, 2, 3, [])


# Resume with a cursor.


async def test_a_cursor_gets_what_follows_it(desk: Desk) -> None:
    """Every message after the cursor, in order, whatever other sockets were sent."""
    await desk.say(*"abcd")
    epoch = await desk.epoch()
    await desk.log.mark_sent([Mark(SESSION, Position(epoch, 4))])
    assert shape(await desk.resume(Position(epoch, 0))) == ("replayed", 0, 4, 1, list("abcd"))
    assert shape(await desk.resume(Position(epoch, 3))) == ("replayed", 3, 4, 1, ["d"])
    assert shape(await desk.resume(Position(epoch, 4))) == ("replayed", 4, 4, 1, [])


async def test_a_cursor_at_the_edge_of_the_log_is_no_reset(short: Desk) -> None:
    """The next message is the oldest that is left: nothing is missing."""
    await short.say(*"abcde")
    epoch = await short.epoch()
    assert shape(await short.resume(Position(epoch, 2))) == ("replayed", 2, 5, 3, ["c", "d", "e"])
    assert shape(await short.resume(Position(epoch, 5))) == ("replayed", 5, 5, 3, [])


async def test_a_cursor_behind_the_log_is_a_reset(short: Desk) -> None:
    """Never a silent gap."""
    await short.say(*"abcde")
    epoch = await short.epoch()
    assert not (await short.resume(Position(epoch, 1))).unknown
    assert shape(await short.resume(Position(epoch, 1))) == ("reset", 2, 5, 3, ["c", "d", "e"])
    assert shape(await short.resume(Position(epoch, 0))) == ("reset", 2, 5, 3, ["c", "d", "e"])


async def test_a_cursor_of_another_epoch_is_a_reset(desk: Desk) -> None:
    """A log begun anew has nothing to do with the old one, also where its seqs are alike."""
    await desk.say("a", "b")
    for seq in (0, 1, 2, 9):
        resumed = await desk.resume(Position("another", seq))
        assert shape(resumed) == ("reset", 0, 2, 1, ["a", "b"])
        assert resumed.unknown


async def test_a_cursor_ahead_of_the_log_is_a_reset(desk: Desk) -> None:
    """A Redis that lost its last writes: what the client has is not what the log will have."""
    await desk.say("a", "b")
    for seq in (3, 10**15):
        assert shape(await desk.resume(Position(await desk.epoch(), seq))) == ("reset", 0, 2, 1, ["a", "b"])


async def test_a_cursor_of_a_forgotten_session_is_a_reset(desk: Desk) -> None:
    """The session begins anew, and the client is told that what it waits for is gone."""
    resumed = await desk.resume(Position("e1", 7))
    assert shape(resumed) == ("reset", 0, 0, 1, [])
    assert resumed.unknown
    assert resumed.page.epoch != "e1"


async def test_a_log_that_outlived_its_record_is_not_sent(desk: Desk) -> None:
    """Entries without seqs of the new epoch reach nobody."""
    await desk.say("a", "b")
    old = await desk.epoch()
    desk.redis.delete(SESSION)
    assert shape(await desk.resume(Position(old, 1))) == ("reset", 0, 0, 1, [])
    await desk.say("c")
    assert shape(await desk.resume(Position(await desk.epoch(), 0))) == ("replayed", 0, 1, 1, ["c"])


async def test_each_connection_is_a_generation(desk: Desk) -> None:
    """A newer connection can always be told from an older one, with or without a cursor."""
    generations = [(await desk.resume()).generation for _ in range(2)]
    generations.append((await desk.resume(Position("another", 1))).generation)
    assert generations == [1, 2, 3]


async def test_resuming_keeps_the_session_alive(desk: Desk) -> None:
    """A session with a socket is not forgotten."""
    await desk.resume()
    desk.redis.pexpire(SESSION, 1_000)
    await desk.resume()
    assert desk.redis.pttl(SESSION) > SETTINGS.session_log_max_age_s * 1_000


async def test_a_session_key_of_another_type_is_refused(desk: Desk) -> None:
    """The connection is told that Redis refused; nothing is overwritten."""
    desk.redis.set(SESSION, "something else")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await desk.resume()
    assert desk.redis.get(SESSION) == b"something else"


# Pages.


async def read_all(desk: Desk, position: Position) -> list[str]:
    """As a pod does: page after page, from where the last one ended."""
    out: list[str] = []
    while True:
        page = await desk.log.read(SESSION, position)
        assert page.batch.epoch == page.epoch
        if not page.batch.entries:
            return out
        assert page.batch.first == position.seq + 1
        out += said(page.batch.entries)
        position = Position(page.epoch, page.batch.last)


async def test_long_logs_are_read_in_pages(desk: Desk) -> None:
    """Each message once and in order, across pages and the slices within them."""
    texts = [str(n) for n in range(700)]
    await desk.say(*texts)
    first = await desk.resume(Position(await desk.epoch(), 0))
    assert (first.head, len(first.page.entries)) == (700, 256)
    assert said(first.page.entries) == texts[:256]
    assert await read_all(desk, Position(first.page.epoch, 0)) == texts
    assert await read_all(desk, Position(first.page.epoch, 411)) == texts[411:]


async def test_pages_are_bounded_by_bytes(store: Store, redis_client: Client) -> None:
    """As many messages as fit, and always one, however large."""
    desk = Desk(store, redis_client, replace(SETTINGS, replay_page_bytes=4_000))
    await desk.say("a", "b", "c", size=1_500)
    await desk.say("big", size=10_000)
    await desk.say("d", "e")
    epoch = await desk.epoch()
    pages = [said((await desk.log.read(SESSION, Position(epoch, after))).batch.entries) for after in range(6)]
    assert pages == [["a", "b"], ["b", "c"], ["c"], ["big"], ["d", "e"], ["e"]]
    assert said((await desk.resume(Position(epoch, 3))).page.entries) == ["big"]
    assert await read_all(desk, Position(epoch, 0)) == ["a", "b", "c", "big", "d", "e"]


async def test_a_page_says_where_the_log_stands(short: Desk) -> None:
    """Head and oldest come with every page; a page behind the log begins at its oldest."""
    await short.say(*"abcde")
    page = await short.log.read(SESSION, Position(await short.epoch(), 0))
    assert (page.head, page.oldest, page.batch.first, said(page.batch.entries)) == (5, 3, 3, ["c", "d", "e"])


async def test_nothing_follows_the_head(desk: Desk) -> None:
    """Also for a position that the log has not reached: and the reader is told that it has not."""
    await desk.say("a")
    epoch = await desk.epoch()
    for seq in (1, 7):
        page = await desk.log.read(SESSION, Position(epoch, seq))
        assert page.batch == Batch(epoch, seq + 1, [])
        assert (page.head, page.standing) == (1, 1)


async def test_a_page_of_another_epoch_is_empty(desk: Desk) -> None:
    """The reader sees the new epoch and no message that it could mistake for one of the old."""
    await desk.say("a")
    page = await desk.log.read(SESSION, Position("another", 0))
    assert (page.epoch, page.head, page.standing) == (await desk.epoch(), 1, -1)
    assert page.batch.entries == []


async def test_a_page_of_a_forgotten_session_is_empty(desk: Desk) -> None:
    """Reading begins no session."""
    page = await desk.log.read(SESSION, Position("e1", 3))
    assert (page.epoch, page.head, page.oldest, page.standing) == ("", 0, 1, -1)
    assert page.batch.entries == []
    assert not desk.redis.exists(SESSION)


# Positions.


async def test_a_session_is_begun_once(desk: Desk) -> None:
    """By the first connection; the others find it."""
    position = await begun(desk.log, SESSION)
    assert position.seq == 0
    assert desk.redis.pttl(SESSION) > 0
    await desk.say("a")
    assert await begun(desk.log, SESSION) == Position(position.epoch, 1)


async def test_heads_of_several_logs(desk: Desk) -> None:
    """Each session's newest position; None for one that is gone."""
    await desk.say("a", "b")
    await desk.say("x", session_id="s-2")
    names = [SESSION, KEYS.session(LIST, "gone"), KEYS.session(LIST, "s-2")]
    first, gone, second = await desk.log.heads(names)
    assert first == Position(await desk.epoch(), 2)
    assert gone is None
    assert isinstance(second, Position)
    assert second.seq == 1
    assert await desk.log.heads([]) == []


async def test_an_unreadable_record_hides_no_other(desk: Desk) -> None:
    """A key that holds something else is an error in its own place, not of all positions asked for."""
    await desk.say("a")
    desk.redis.set(KEYS.session(LIST, "clobbered"), "x")
    clobbered, first = await desk.log.heads([KEYS.session(LIST, "clobbered"), SESSION])
    assert isinstance(clobbered, RedisRefused)
    assert isinstance(first, Position)


async def test_heads_can_keep_sessions_alive(desk: Desk) -> None:
    """A session whose socket is only quiet is not forgotten, and asking alone changes nothing."""
    await desk.say("a")
    desk.redis.pexpire(SESSION, 1_000_000)
    await desk.log.heads([SESSION])
    assert desk.redis.pttl(SESSION) <= 1_000_000
    await desk.log.heads([SESSION], renew=True)
    assert desk.redis.pttl(SESSION) > 1_000_000


# Live.


@pytest.fixture
async def feed(redis_url: str, redis_client: Client) -> AsyncIterator[tuple[Desk, list[list[Any]]]]:
    """A desk whose store's pushes are kept."""
    pushes: list[list[Any]] = []
    store = open_store(parse_redis_url(redis_url), "feed", timeout_s=5, on_push=pushes.append)
    async with running(store):
        yield Desk(store, redis_client), pushes


def messages(pushes: list[list[Any]]) -> list[object]:
    return [parse_push(push[2]) for push in pushes if push[0] == b"message"]


async def test_live_messages_are_batches_of_the_log(feed: tuple[Desk, list[list[Any]]]) -> None:
    """A subscriber is pushed what the log has, with its epoch and seqs."""
    desk, pushes = feed
    assert await desk.log.locate("acme", "s-1") == SESSION
    desk.log.subscribe([SESSION])
    await desk.resume()
    await desk.say("a", "b")
    await eventually(lambda: messages(pushes))
    [live] = messages(pushes)
    assert live == (await desk.log.read(SESSION, Position(await desk.epoch(), 0))).batch


async def test_subscribe_then_resume_leaves_no_hole(feed: tuple[Desk, list[list[Any]]]) -> None:
    """Whatever is appended around it: history and live together have every seq."""
    desk, pushes = feed
    for n in range(20):
        await desk.say(f"{n} before")
        pushes.clear()
        desk.log.subscribe([SESSION])
        resumed = desk.log.resume(SESSION, Position(await desk.epoch(), 0))
        await desk.say(f"{n} meanwhile")
        history = (await resumed).page
        await desk.say(f"{n} after")
        await desk.store.call("EXISTS", SESSION)
        seqs = set(range(history.first, history.last + 1))
        for batch in messages(pushes):
            assert isinstance(batch, Batch)
            seqs |= set(range(batch.first, batch.last + 1))
        assert seqs == set(range(1, 3 * (n + 1) + 1))
        desk.log.unsubscribe(SESSION)


async def test_an_unsubscribed_channel_is_silent(feed: tuple[Desk, list[list[Any]]]) -> None:
    """A pod without the session's sockets is not troubled."""
    desk, pushes = feed
    desk.log.subscribe([SESSION])
    desk.log.unsubscribe(SESSION)
    await desk.say("a")
    await desk.store.call("EXISTS", SESSION)
    assert messages(pushes) == []


async def test_replace_older_reaches_the_channel(feed: tuple[Desk, list[list[Any]]]) -> None:
    """Every pod hears which connections have to go."""
    desk, pushes = feed
    desk.log.subscribe([SESSION])
    await desk.log.replace_older(SESSION, 7)
    await eventually(lambda: messages(pushes) == [Replaced(7)])


def test_what_is_published_is_told_apart() -> None:
    """Batches, live text and replacements, from their first bytes."""
    assert parse_push(b"e1:4\n{a\n{b") == Batch("e1", 4, [b"{a", b"{b"])
    assert parse_push(b"~\n{chunk}") == Live(b"{chunk}")
    assert parse_push(b"!12") == Replaced(12)


@pytest.mark.parametrize("payload", [b"", b"hello", b"!", b"!x", b"e1:x\n{", b"\xff:1\n{", b"e1\n{"])
def test_what_others_publish_is_a_value_error(payload: bytes) -> None:
    """A stray message on a channel is seen as such."""
    with pytest.raises(ValueError, match=r".*"):
        parse_push(payload)


# Without Redis.


async def test_reads_fail_while_redis_is_away(redis_url: str) -> None:
    """At once, with the error that the endpoints know; subscribing waits for the reconnect instead."""
    store = open_store(parse_redis_url(redis_url), "down", timeout_s=5)
    log = SessionLog(store, store, KEYS, SETTINGS)
    for work in (
        log.resume(SESSION, None),
        log.read(SESSION, Position("e1", 0)),
        begun(log, SESSION),
        log.mark_sent([Mark(SESSION, Position("e1", 1))]),
        log.replace_older(SESSION, 1),
    ):
        with pytest.raises(RedisUnavailable):
            await work
    log.subscribe([SESSION])
    log.unsubscribe(SESSION)


@pytest.mark.parametrize("renew", [False, True])
async def test_positions_are_unknown_while_redis_is_away(redis_url: str, renew: bool) -> None:
    """Each session in its own place: where there are several servers, the others' can be read."""
    store = open_store(parse_redis_url(redis_url), "down", timeout_s=5)
    heads = await SessionLog(store, store, KEYS, SETTINGS).heads([SESSION, f"{SESSION}-2"], renew=renew)
    assert [type(head) for head in heads] == [RedisUnavailable, RedisUnavailable]


async def test_positions_are_unknown_when_redis_goes_away(desk: Desk) -> None:
    """Also when it goes while it is asked."""
    heads = asyncio.create_task(desk.log.heads([SESSION, f"{SESSION}-2"]))
    await asyncio.sleep(0)
    desk.store.links[0].abort("a test")
    assert [type(head) for head in await heads] == [RedisUnavailable, RedisUnavailable]


async def test_nothing_is_read_before_the_channels_are_subscribed_again(redis_url: str) -> None:
    """Between the connect and the subscriptions a message could fall through a read."""
    asked: list[type[BaseException] | None] = []

    async def on_connect(_link: Link) -> None:
        for work in (log.resume(SESSION, None), log.read(SESSION, Position("e1", 0))):
            try:
                await work
            except RedisUnavailable as error:
                asked.append(type(error))

    store = open_store(parse_redis_url(redis_url), "feed", timeout_s=5, on_connect=on_connect)
    log = SessionLog(store, store, KEYS, SETTINGS)
    async with running(store):
        assert asked == [RedisUnavailable, RedisUnavailable]
        assert (await log.resume(SESSION, None)).status == "fresh"


async def test_reading_what_the_client_has(desk: Desk) -> None:
    """From an earlier place on, where there is one; how it stands is judged by the cursor alone."""
    await desk.say(*"abcd")
    epoch = await desk.epoch()
    assert shape(await desk.reread(Position(epoch, 3), 1)) == ("replayed", 1, 4, 1, ["b", "c", "d"])
    assert shape(await desk.reread(Position(epoch, 4), 2)) == ("replayed", 2, 4, 1, ["c", "d"])
    assert shape(await desk.reread(Position(epoch, 1), 3)) == ("replayed", 1, 4, 1, ["b", "c", "d"])
    assert shape(await desk.reread(Position(epoch, 5), 2)) == ("reset", 0, 4, 1, ["a", "b", "c", "d"])


async def test_reading_what_is_gone(short: Desk) -> None:
    """The log reaches back to the cursor, and not to the earlier place: it is no reset."""
    await short.say(*"abcd")
    epoch = await short.epoch()
    assert shape(await short.reread(Position(epoch, 3), 0)) == ("replayed", 1, 4, 2, ["b", "c", "d"])
    assert shape(await short.reread(Position(epoch, 0), 0)) == ("reset", 1, 4, 2, ["b", "c", "d"])
