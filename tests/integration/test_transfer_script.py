"""Every branch of transfer.lua, peek.lua and take(): nothing lost, nothing doubled, order, bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog

from backplane.errors import RedisRefused
from backplane.link import Link
from backplane.messages import timestamp
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.router.dispatch import dispatch
from backplane.router.transfer import Transfer, judge
from backplane.scripts import PEEK, TRANSFER
from backplane.settings import Settings
from backplane.store import Store
from backplane.wire import Argument
from tests.integration.conftest import can_watch
from tests.support.valkey import Client, Valkey, running

SETTINGS = Settings()
KEYS = SETTINGS.keys()
LIST = KEYS.callbacks("acme")
FENCE = KEYS.fence(LIST)
DEAD = KEYS.dead_letters(LIST)
NOW = 1_769_860_800.0
RETENTION_MS = 3_600_000

Triple = tuple[int, bytes, bytes]


def session(session_id: str = "s-1") -> str:
    return KEYS.session(LIST, session_id)


def entry(text: object, age_s: float = 0, size: int = 0) -> bytes:
    """A log entry as the router makes them: its timestamp where the script looks for it."""
    whole = b'{"timestamp":"%b","text":"%b"' % (timestamp(NOW - age_s).encode(), str(text).encode())
    return whole.ljust(size, b".")


@dataclass(frozen=True)
class Move:
    """One call of the transfer script; the defaults are those of a router with ordinary settings."""

    sessions: dict[str, list[Triple]] = field(default_factory=dict)
    dead: list[tuple[int, str, str]] = field(default_factory=list)
    fence: str = ""
    new_fence: str = "f1"
    taken: int | None = None
    take: tuple[int, int, int] = (0, 0, 0)
    epoch: str = "e1"
    retention_ms: int = RETENTION_MS
    keep_s: float = 3_600
    entries: int = 1_000
    bytes: int = 1_000_000
    remembered: int = 2_000
    dead_letters: int = 100
    dead_bytes: int = 100_000
    task_kept_ms: int = 60_000
    grace_ms: int = 2_000
    late: str = "keep"
    text_bytes: int = 10_000
    step_ms: int = 0

    async def run(self, link: Link) -> list[Any]:
        positions = {one[0] for entries in self.sessions.values() for one in entries}
        positions |= {at for at, _, _ in self.dead}
        taken = len(positions) if self.taken is None else self.taken
        args: list[Argument] = [self.fence, self.new_fence, taken, *self.take]
        args += [self.dead_letters, self.dead_bytes]
        args += [self.epoch, self.retention_ms, timestamp(NOW - self.keep_s), self.entries, self.bytes]
        args += [self.remembered, "PUBLISH", KEYS.task(LIST, ""), self.task_kept_ms, self.grace_ms, self.late]
        args += [self.text_bytes, self.step_ms, len(self.sessions)]
        for entries in self.sessions.values():
            args.append(len(entries))
            args += [part for one in entries for part in (*one, "", "", "")[:6]]
        args += [part for letter in self.dead for part in letter]
        reply: list[Any] = await link.script(TRANSFER, [LIST, FENCE, DEAD, *self.sessions], args)
        return reply


def appends(bodies: Iterable[bytes], first: int = 0) -> list[Triple]:
    """Consecutive callbacks of the list, each its own."""
    return [(at, b"digest:" + body, body) for at, body in enumerate(bodies, first)]


def push(redis: Client, *callbacks: bytes | str) -> None:
    """What the AES does."""
    for callback in callbacks:
        redis.lpush(LIST, callback)


def log_of(redis: Client, session_id: str = "s-1") -> list[bytes]:
    entries: list[bytes] = redis.lrange(f"{session(session_id)}:log", 0, -1)
    return entries


def record(redis: Client, session_id: str = "s-1") -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in redis.hgetall(session(session_id)).items()}


def letters(redis: Client) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.xrange(DEAD)]


def everything(redis: Client) -> dict[bytes, bytes]:
    """The whole data set, to see that nothing changed."""
    return {key: redis.dump(key) for key in redis.keys("*")}


@pytest.fixture
def heard(redis_client: Client) -> Iterator[Heard]:
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(session(), session("s-2"))
        for _ in range(2):  # the two confirmations, so that nothing that follows is missed
            pubsub.get_message(timeout=5)
        yield Heard(pubsub, redis_client)


class Heard:
    """What subscribers of the two sessions are sent."""

    def __init__(self, pubsub: Any, redis: Client) -> None:
        self._pubsub, self._redis = pubsub, redis

    def all(self) -> list[bytes]:
        """Everything published up to now, in order."""
        self._redis.publish(session(), b"end")
        payloads: list[bytes] = []
        while True:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None
            if message["data"] == b"end":
                return payloads
            payloads.append(message["data"])


# What it is for.


async def test_entries_get_seqs_and_are_published_in_one_piece(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """A batch of one session is one append and one message, seqs from 1; the list is trimmed at its right."""
    push(redis_client, "a", "b", "c", "later")
    bodies = [entry(n) for n in "abc"]
    assert await Move({session(): appends(bodies)}).run(link) == [1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], []]
    assert log_of(redis_client) == bodies
    assert heard.all() == [b"e1:1\n" + b"\n".join(bodies)]
    assert redis_client.lrange(LIST, 0, -1) == [b"later"]
    shown = record(redis_client)
    assert (shown["e"], shown["h"], shown["b"]) == ("e1", "3", str(sum(map(len, bodies))))


async def test_a_log_goes_on_in_its_epoch(link: Link, redis_client: Client, heard: Heard) -> None:
    """Seqs have no holes across batches, and the epoch offered for new sessions is not taken."""
    push(redis_client, "a")
    await Move({session(): appends([entry("a")])}).run(link)
    push(redis_client, "b", "c")
    await Move({session(): appends([entry("b"), entry("c")])}, fence="f1", new_fence="f2", epoch="e9").run(
        link
    )
    assert heard.all() == [b"e1:1\n" + entry("a"), b"e1:2\n" + entry("b") + b"\n" + entry("c")]
    assert record(redis_client)["e"] == "e1"
    assert record(redis_client)["h"] == "3"


async def test_several_sessions_in_one_batch(link: Link, redis_client: Client, heard: Heard) -> None:
    """Each session has its own log, its own seqs, and an epoch that no other has."""
    push(redis_client, "a", "x", "b")
    sessions = {
        session(): [(0, b"1", entry("a")), (2, b"3", entry("b"))],
        session("s-2"): [(1, b"2", entry("x"))],
    }
    assert (await Move(sessions).run(link))[:2] == [1, 3]
    assert heard.all() == [b"e1:1\n" + entry("a") + b"\n" + entry("b"), b"e12:1\n" + entry("x")]
    assert redis_client.llen(LIST) == 0


async def test_the_reply_has_what_is_next_in_line(link: Link, redis_client: Client) -> None:
    """A busy list costs one call a batch: the next callbacks come with the reply, under the same limits."""
    push(redis_client, "a", "b", "c", "d" * 50)
    move = Move({session(): appends([entry("a")])}, take=(10, 1_000, 20))
    assert (await move.run(link))[13:] == [b"b", b"c", [50, b"d" * 50]]


async def test_an_empty_batch_only_moves_the_fence(link: Link, redis_client: Client) -> None:
    """Nothing to do does no harm."""
    push(redis_client, "a")
    assert await Move(taken=0).run(link) == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], []]
    assert redis_client.lrange(LIST, 0, -1) == [b"a"]


# Fences.


async def test_a_moved_fence_refuses(link: Link, redis_client: Client) -> None:
    """A router that slept while another one moved the same callbacks changes nothing."""
    push(redis_client, "a", "b")
    await Move({session(): appends([entry("a")])}).run(link)
    before = everything(redis_client)
    late = Move({session(): [(0, b"other digest", entry("a"))]}, fence="", new_fence="f2")
    assert await late.run(link) == [0]
    assert await replace(late, fence="f0").run(link) == [0]
    assert everything(redis_client) == before


async def test_a_fence_where_none_was_read_refuses(link: Link, redis_client: Client) -> None:
    """Also the first transfer of a list is refused if another router was first."""
    push(redis_client, "a")
    redis_client.set(FENCE, "of another router")
    assert await Move({session(): appends([entry("a")])}).run(link) == [0]
    assert log_of(redis_client) == []


async def test_a_vanished_fence_refuses(link: Link, redis_client: Client) -> None:
    """A data set that lost the fence is an older one; what was read may not be what is there."""
    push(redis_client, "a")
    assert await Move({session(): appends([entry("a")])}, fence="f0").run(link) == [0]
    assert log_of(redis_client) == []


async def test_a_list_that_is_shorter_than_what_was_taken_refuses(link: Link, redis_client: Client) -> None:
    """The list was cut by someone else, or an older data set came back: look again."""
    push(redis_client, "a")
    move = Move({session(): appends([entry("a"), entry("b")])})
    assert await move.run(link) == [0]
    assert log_of(redis_client) == []
    assert redis_client.llen(LIST) == 1
    assert not redis_client.exists(FENCE)


async def test_the_fence_lasts_a_week(link: Link, redis_client: Client) -> None:
    """Fences of tenants that went away do not stay for ever."""
    push(redis_client, "a")
    await Move({session(): appends([entry("a")])}, new_fence="mine").run(link)
    assert redis_client.get(FENCE) == b"mine"
    assert 600_000 < redis_client.ttl(FENCE) <= 604_800


# Duplicates.


async def test_a_callback_twice_in_a_batch_is_one_entry(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """The AES sent it twice before the router looked."""
    push(redis_client, "a", "a", "b")
    triples = [(0, b"A", entry("a")), (1, b"A", entry("a")), (2, b"B", entry("b"))]
    assert await Move({session(): triples}).run(link) == [
        1,
        2,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        [],
        [b"#1", b"duplicate"],
    ]
    assert log_of(redis_client) == [entry("a"), entry("b")]
    assert heard.all() == [b"e1:1\n" + entry("a") + b"\n" + entry("b")]
    assert redis_client.llen(LIST) == 0


async def test_a_callback_again_in_a_later_batch_is_no_entry(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """It is neither logged nor published again, and taken off the list."""
    push(redis_client, "a", "b")
    await Move({session(): appends([entry("a"), entry("b")])}).run(link)
    push(redis_client, "a", "c", "b")
    again = Move({session(): appends([entry("a"), entry("c"), entry("b")])}, fence="f1", new_fence="f2")
    assert await again.run(link) == [
        1,
        1,
        2,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        [],
        [b"#0", b"duplicate", b"#2", b"duplicate"],
    ]
    assert log_of(redis_client) == [entry("a"), entry("b"), entry("c")]
    assert heard.all()[1:] == [b"e1:3\n" + entry("c")]
    assert redis_client.llen(LIST) == 0


async def test_duplicates_alone_leave_the_log_as_it_is(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """Nothing is published and no seq is used up."""
    push(redis_client, "a")
    await Move({session(): appends([entry("a")])}).run(link)
    heard.all()
    push(redis_client, "a")
    again = Move({session(): appends([entry("a")])}, fence="f1", new_fence="f2")
    assert await again.run(link) == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, [], [b"#0", b"duplicate"]]
    assert heard.all() == []
    assert record(redis_client)["h"] == "1"


async def test_sessions_do_not_share_what_they_remember(link: Link, redis_client: Client) -> None:
    """The same digest in two sessions is two callbacks."""
    push(redis_client, "a", "a")
    sessions = {session(): [(0, b"A", entry("a"))], session("s-2"): [(1, b"A", entry("a"))]}
    assert (await Move(sessions).run(link))[:3] == [1, 2, 0]


async def test_remembered_digests_are_bounded(link: Link, redis_client: Client) -> None:
    """The newest callbacks are known again; of a long session's others only so many are remembered."""
    bodies = [entry(n) for n in range(700)]
    fence = ""
    for start in range(0, 700, 100):
        push(redis_client, *["x"] * 100)
        new = f"f{start}"
        move = Move(
            {session(): appends(bodies[start : start + 100])}, fence=fence, new_fence=new, remembered=50
        )
        assert (await move.run(link))[:2] == [1, 100]
        fence = new
    digests = redis_client.zrange(f"{session()}:seen", 0, -1)
    assert 50 <= len(digests) <= 50 + 256  # what is forgotten is tended to every 256 entries
    assert digests[-50:] == [b"digest:" + body for body in bodies[-50:]]


# Publish only.


async def test_chunks_are_published_between_entries_and_not_logged(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """Live text keeps its place between the logged messages around it."""
    push(redis_client, *"abcdef")
    triples = [
        (0, b"", b"chunk 0"),
        (1, b"A", entry("a")),
        (2, b"B", entry("b")),
        (3, b"", b"chunk 1"),
        (4, b"", b"chunk 1"),
        (5, b"C", entry("c")),
    ]
    assert await Move({session(): triples}).run(link) == [1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], []]
    assert log_of(redis_client) == [entry("a"), entry("b"), entry("c")]
    assert heard.all() == [
        b"~\nchunk 0",
        b"e1:1\n" + entry("a") + b"\n" + entry("b"),
        b"~\nchunk 1",
        b"~\nchunk 1",
        b"e1:3\n" + entry("c"),
    ]


async def test_a_duplicate_between_entries_does_not_part_them(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """What is published stays consecutive."""
    push(redis_client, *"aab")
    triples = [(0, b"A", entry("a")), (1, b"A", entry("a")), (2, b"B", entry("b"))]
    await Move({session(): triples}).run(link)
    assert heard.all() == [b"e1:1\n" + entry("a") + b"\n" + entry("b")]


async def test_chunks_alone_begin_no_session(link: Link, redis_client: Client, heard: Heard) -> None:
    """What is not logged leaves nothing behind."""
    push(redis_client, "a")
    assert await Move({session(): [(0, b"", b"chunk")]}).run(link) == [
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        [],
        [],
    ]
    assert heard.all() == [b"~\nchunk"]
    assert redis_client.keys() == [FENCE.encode()]


# What cannot be written.


@pytest.mark.parametrize("suffix", ["", ":log", ":seen"])
async def test_a_session_whose_keys_hold_something_else(
    link: Link, redis_client: Client, heard: Heard, suffix: str
) -> None:
    """Its callbacks are dead letters, the foreign key stays, and the others of the batch go on."""
    redis_client.set(session() + suffix, "something else")
    push(redis_client, "raw a", "raw x", "raw b", "raw chunk", "raw bad")
    sessions = {
        session(): [(0, b"A", entry("a")), (2, b"B", entry("b")), (3, b"", b"chunk")],
        session("s-2"): [(1, b"X", entry("x"))],
    }
    reply = await Move(sessions, dead=[(4, "not_json", "why")]).run(link)
    assert reply == [1, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, [], [b"#0", b"dead", b"#2", b"dead"]]
    buried = [(letter[b"reason"], letter[b"raw"]) for letter in letters(redis_client)]
    assert buried == [
        (b"session_unusable", b"raw a"),
        (b"session_unusable", b"raw b"),
        (b"not_json", b"raw bad"),
    ]
    assert b"WRONGTYPE" in letters(redis_client)[0][b"detail"]
    assert redis_client.get(session() + suffix) == b"something else"
    assert log_of(redis_client, "s-2") == [entry("x")]
    assert heard.all() == [b"e12:1\n" + entry("x")]
    assert redis_client.llen(LIST) == 0
    for key in {"", ":log", ":seen"} - {suffix}:
        assert not redis_client.exists(session() + key)


async def user_link(valkey: Valkey, redis: Client, *rules: str) -> Link:
    """A link that logs in as a user with ``rules``."""
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "&*", "+@all", *rules)
    url = valkey.url.replace("redis://", "redis://limited:secret@")
    return Link(parse_redis_url(url), "limited", timeout_s=5)


@pytest.fixture
def limited_user(redis_client: Client) -> Iterator[None]:
    yield
    redis_client.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.usefixtures("limited_user")
async def test_any_other_error_leaves_the_list_as_it_was(
    link: Link, valkey: Valkey, redis_client: Client, heard: Heard
) -> None:
    """A refused dead letter stops the batch; what was appended by then is known when it is tried again."""
    push(redis_client, "a", "bad", "b")
    sessions = {session(): [(0, b"A", entry("a"))], session("s-2"): [(2, b"B", entry("b"))]}
    move = Move(sessions, dead=[(1, "not_json", "why")])
    async with running(await user_link(valkey, redis_client, "-xadd")) as limited:
        for _ in range(2):
            with pytest.raises(RedisRefused, match=r"xadd|XADD"):
                await move.run(limited)
    assert redis_client.lrange(LIST, 0, -1) == [b"b", b"bad", b"a"]
    assert not redis_client.exists(FENCE)
    assert (await move.run(link))[:4] == [1, 0, 2, 1]
    assert (log_of(redis_client), log_of(redis_client, "s-2")) == ([entry("a")], [entry("b")])
    assert heard.all() == [b"e1:1\n" + entry("a"), b"e12:1\n" + entry("b")]
    assert [letter[b"raw"] for letter in letters(redis_client)] == [b"bad"]
    assert redis_client.llen(LIST) == 0


async def test_dead_letters_of_another_type_leave_the_list_as_it_was(
    link: Link, redis_client: Client, heard: Heard
) -> None:
    """A callback is not dropped because its dead letter cannot be written."""
    redis_client.set(DEAD, "something else")
    push(redis_client, "a", "bad")
    move = Move({session(): [(0, b"A", entry("a"))]}, dead=[(1, "not_json", "why")])
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await move.run(link)
    assert redis_client.llen(LIST) == 2
    redis_client.delete(DEAD)
    assert (await move.run(link))[:4] == [1, 0, 1, 1]
    assert log_of(redis_client) == [entry("a")]
    assert heard.all() == [b"e1:1\n" + entry("a")]


async def test_an_unusable_session_with_unusable_dead_letters_waits(link: Link, redis_client: Client) -> None:
    """Neither place can be written: the callback stays on the list."""
    redis_client.set(session(), "something else")
    redis_client.set(DEAD, "something else")
    push(redis_client, "a")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await Move({session(): appends([entry("a")])}).run(link)
    assert redis_client.lrange(LIST, 0, -1) == [b"a"]


@pytest.mark.usefixtures("limited_user")
@pytest.mark.parametrize("command", ["hmget", "zmscore", "rpush"])
async def test_an_error_that_is_no_wrong_type_blames_no_session(
    link: Link, valkey: Valkey, redis_client: Client, command: str
) -> None:
    """Only WRONGTYPE makes a session unusable; a passing refusal buries nothing and is tried again."""
    push(redis_client, "a")
    move = Move({session(): appends([entry("a")])})
    async with running(await user_link(valkey, redis_client, f"-{command}")) as limited:
        with pytest.raises(RedisRefused, match=command):
            await move.run(limited)
    assert redis_client.keys() == [LIST.encode()]
    assert (await move.run(link))[:2] == [1, 1]


@pytest.mark.usefixtures("limited_user")
async def test_a_refused_publish_is_counted_and_loses_nothing(valkey: Valkey, redis_client: Client) -> None:
    """Pub/sub is a hint; the log is what counts."""
    push(redis_client, "a", "b")
    move = Move({session(): [(0, b"A", entry("a")), (1, b"", b"chunk")]})
    async with running(await user_link(valkey, redis_client, "resetchannels")) as limited:
        assert await move.run(limited) == [1, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, [], []]
    assert log_of(redis_client) == [entry("a")]
    assert redis_client.llen(LIST) == 0


# Bounds of a log.


def bytes_of(redis: Client, session_id: str = "s-1") -> int:
    """What the record says; checked against the log itself."""
    told = int(record(redis, session_id)["b"])
    assert told == sum(map(len, log_of(redis, session_id)))
    return told


async def fill(link: Link, redis: Client, bodies: list[bytes], **limits: Any) -> None:
    """Append one batch to what is there."""
    push(redis, *["x"] * len(bodies))
    fence = (redis.get(FENCE) or b"").decode()
    move = Move({session(): appends(bodies)}, fence=fence, new_fence=f"{fence}+", **limits)
    assert (await move.run(link))[:2] == [1, len(bodies)]


async def test_a_log_is_trimmed_by_entries(link: Link, redis_client: Client) -> None:
    """The oldest go first; the head goes on, so that readers see how far the log reaches."""
    await fill(link, redis_client, [entry(n) for n in range(4)], entries=3)
    assert log_of(redis_client) == [entry(n) for n in (1, 2, 3)]
    await fill(link, redis_client, [entry(n) for n in (4, 5)], entries=3)
    assert log_of(redis_client) == [entry(n) for n in (3, 4, 5)]
    assert record(redis_client)["h"] == "6"
    bytes_of(redis_client)


async def test_a_log_is_trimmed_by_bytes(link: Link, redis_client: Client) -> None:
    """As many of the newest stay as fit, whatever their sizes."""
    await fill(link, redis_client, [entry(n, size=100) for n in range(3)], bytes=350)
    assert bytes_of(redis_client) == 300
    await fill(link, redis_client, [entry("big", size=200)], bytes=350)
    assert log_of(redis_client) == [entry(2, size=100), entry("big", size=200)]
    assert bytes_of(redis_client) == 300


async def test_bytes_exactly_at_the_bound_stay(link: Link, redis_client: Client) -> None:
    """The limit is what a log may have."""
    await fill(link, redis_client, [entry(n, size=100) for n in range(3)], bytes=300, entries=3)
    assert len(log_of(redis_client)) == 3


async def test_an_entry_larger_than_a_whole_log(link: Link, redis_client: Client, heard: Heard) -> None:
    """The newest entry stays, however large: nobody may have been sent it yet; the next one replaces it."""
    await fill(link, redis_client, [entry("a"), entry("big", size=500)], bytes=400)
    assert log_of(redis_client) == [entry("big", size=500)]
    assert record(redis_client)["h"] == "2"
    await fill(link, redis_client, [entry("b")], bytes=400)
    assert heard.all()[-1] == b"e1:3\n" + entry("b")
    assert log_of(redis_client) == [entry("b")]
    bytes_of(redis_client)
    assert redis_client.pttl(f"{session()}:log") > 0


async def test_trimming_by_age_takes_no_young_entry(link: Link, redis_client: Client) -> None:
    """A full log of old entries makes room for new ones by losing the old, and only them."""
    old = [entry(n, age_s=30 * 86_400) for n in range(5)]
    await fill(link, redis_client, old, entries=5, keep_s=60 * 86_400)
    redis_client.hset(session(), "a", 0)
    new = [entry(n) for n in range(5, 9)]
    await fill(link, redis_client, new, entries=5)
    assert log_of(redis_client) == new
    bytes_of(redis_client)


@pytest.mark.usefixtures("limited_user")
@pytest.mark.parametrize("command", ["hset", "zadd", "zremrangebyscore", "pexpire"])
async def test_a_refusal_half_way_neither_loses_nor_doubles(
    link: Link, valkey: Valkey, redis_client: Client, heard: Heard, command: str
) -> None:
    """Whichever write Redis refuses: after the retry each entry is in the log and was published, once."""
    push(redis_client, "a", "b")
    move = Move({session(): appends([entry("a"), entry("b")])})
    async with running(await user_link(valkey, redis_client, f"-{command}")) as limited:
        with pytest.raises(RedisRefused, match=command):
            await move.run(limited)
    assert redis_client.llen(LIST) == 2
    assert (await move.run(link))[0] == 1
    assert log_of(redis_client) == [entry("a"), entry("b")]
    assert record(redis_client)["h"] == "2"
    bytes_of(redis_client)
    assert heard.all() == [b"e1:1\n" + entry("a") + b"\n" + entry("b")]


async def test_a_log_is_trimmed_by_age(link: Link, redis_client: Client) -> None:
    """What is older than the age goes when the log is next tended to; the time is in the entry itself."""
    await fill(
        link,
        redis_client,
        [entry("older", age_s=7_000), entry("old", age_s=5_000), entry("new")],
        keep_s=9_000,
    )
    redis_client.hset(session(), "a", 0)
    await fill(link, redis_client, [entry("newest")], keep_s=6_000)
    assert log_of(redis_client) == [entry("old", age_s=5_000), entry("new"), entry("newest")]
    bytes_of(redis_client)
    assert record(redis_client)["h"] == "4"


async def test_age_is_looked_at_every_so_many_entries(link: Link, redis_client: Client) -> None:
    """A busy log is tended to by count, however short the time."""
    await fill(link, redis_client, [entry("old", age_s=5_000)], keep_s=9_000)
    for start in range(0, 300, 100):
        await fill(link, redis_client, [entry(n) for n in range(start, start + 100)], keep_s=4_000)
    assert log_of(redis_client)[0] == entry(0)
    bytes_of(redis_client)


async def test_an_expired_log_counts_its_bytes_anew(link: Link, redis_client: Client) -> None:
    """Or a session that slept would keep less and less, and at last nothing."""
    await fill(link, redis_client, [entry(n, size=100) for n in range(3)], bytes=350)
    redis_client.delete(f"{session()}:log")
    await fill(link, redis_client, [entry(n, size=100) for n in range(3, 5)], bytes=350)
    assert bytes_of(redis_client) == 200
    assert record(redis_client)["h"] == "5"


async def test_a_wrong_count_of_bytes_blocks_nothing(link: Link, redis_client: Client) -> None:
    """Someone wrote into the record: at worst the log begins anew, and counts right from then on."""
    await fill(link, redis_client, [entry(0)])
    redis_client.hset(session(), "b", 10**9)
    await fill(link, redis_client, [entry(1)])
    await fill(link, redis_client, [entry(2)])
    assert log_of(redis_client)[-1] == entry(2)
    assert record(redis_client)["h"] == "3"
    bytes_of(redis_client)


async def test_a_log_that_outlived_its_session_is_not_joined_to_the_next(
    link: Link, redis_client: Client
) -> None:
    """A record evicted alone: the new epoch's seq 1 is its first entry, and nothing stands before it."""
    await fill(link, redis_client, [entry(n) for n in range(3)])
    redis_client.delete(session())
    await fill(link, redis_client, [entry("new"), entry("newer")], epoch="e2")
    assert log_of(redis_client) == [entry("new"), entry("newer")]
    assert record(redis_client)["e"] == "e2"
    assert record(redis_client)["h"] == "2"
    bytes_of(redis_client)


async def test_every_key_of_a_session_expires(link: Link, redis_client: Client) -> None:
    """A silent session is forgotten, an eighth after its last entry could be read."""
    await fill(link, redis_client, [entry("a")])
    for suffix in ("", ":log", ":seen"):
        left = redis_client.pttl(session() + suffix)
        assert RETENTION_MS * 9 / 8 - 60_000 < left <= RETENTION_MS * 9 / 8


async def test_expiry_is_put_off_while_a_session_lives(link: Link, redis_client: Client) -> None:
    """Not by every entry, but long before it is due."""
    await fill(link, redis_client, [entry("a")])
    for suffix in ("", ":log", ":seen"):
        redis_client.pexpire(session() + suffix, 1_000_000)
    await fill(link, redis_client, [entry("b")])
    assert redis_client.pttl(session()) <= 1_000_000
    redis_client.hincrby(session(), "a", -RETENTION_MS // 8)
    await fill(link, redis_client, [entry("c")])
    for suffix in ("", ":log", ":seen"):
        assert redis_client.pttl(session() + suffix) > RETENTION_MS


# Dead letters.


async def bury(link: Link, redis: Client, raws: list[bytes], **limits: Any) -> list[Any]:
    push(redis, *raws)
    fence = (redis.get(FENCE) or b"").decode()
    dead = [(at, "not_json", "why") for at in range(len(raws))]
    return await Move(dead=dead, fence=fence, new_fence=f"{fence}+", **limits).run(link)


def dead_bytes(redis: Client) -> int:
    """What is counted; checked against the letters themselves."""
    told = int(redis.get(f"{DEAD}:bytes"))
    assert told == sum(len(letter[b"raw"]) for letter in letters(redis))
    return told


async def test_a_dead_letter_says_what_it_was_and_why(link: Link, redis_client: Client) -> None:
    """Reason, detail, size and the bytes as they were pushed."""
    push(redis_client, "\x00{raw", "b")
    dead = [(0, "not_json", "byte 0"), (1, "no_session", "")]
    assert (await Move(dead=dead).run(link))[:4] == [1, 0, 0, 2]
    assert letters(redis_client) == [
        {b"reason": b"not_json", b"detail": b"byte 0", b"size": b"5", b"raw": b"\x00{raw"},
        {b"reason": b"no_session", b"detail": b"", b"size": b"1", b"raw": b"b"},
    ]
    assert dead_bytes(redis_client) == 6


async def test_dead_letters_are_bounded_by_count(link: Link, redis_client: Client) -> None:
    """The oldest go first, and how many is told."""
    reply = await bury(link, redis_client, [b"%d" % n for n in range(5)], dead_letters=3)
    assert reply == [1, 0, 0, 5, 2, 0, 0, 0, 0, 0, 0, [], []]
    assert [letter[b"raw"] for letter in letters(redis_client)] == [b"2", b"3", b"4"]
    assert dead_bytes(redis_client) == 3


async def test_dead_letters_are_bounded_by_bytes(link: Link, redis_client: Client) -> None:
    """As many of the newest as fit."""
    reply = await bury(link, redis_client, [b"%d" % n * 100 for n in range(5)], dead_bytes=250)
    assert reply[3:5] == [5, 3]
    assert [letter[b"raw"][:1] for letter in letters(redis_client)] == [b"3", b"4"]
    assert dead_bytes(redis_client) == 200


async def test_a_dead_letter_over_the_bound_is_kept_cut(link: Link, redis_client: Client) -> None:
    """Its beginning and its size say what it was."""
    reply = await bury(link, redis_client, [b"x" * 20_000], dead_bytes=10_000)
    assert reply[3:5] == [1, 0]
    [letter] = letters(redis_client)
    assert (letter[b"size"], len(letter[b"raw"])) == (b"20000", 4_096)
    assert dead_bytes(redis_client) == 4_096


async def test_a_cut_one_still_fits_a_small_bound(link: Link, redis_client: Client) -> None:
    """The cut is never larger than the bound itself."""
    reply = await bury(link, redis_client, [b"first", b"x" * 20_000], dead_bytes=1_000)
    assert reply[3:5] == [2, 1]
    assert dead_bytes(redis_client) == 1_000


async def test_deleted_dead_letters_do_not_block_the_list(link: Link, redis_client: Client) -> None:
    """An operator who deletes the stream and not its count of bytes stops nothing; new letters are kept."""
    await bury(link, redis_client, [b"x" * 900], dead_bytes=1_000)
    redis_client.delete(DEAD)
    reply = await bury(link, redis_client, [b"y" * 500, b"z"], dead_bytes=1_000)
    assert reply[3:5] == [2, 0]
    assert dead_bytes(redis_client) == 501


# What is next in line: peek.lua and take().


async def peek(link: Link, count: int = 100, budget: int = 10_000, largest: int = 10_000) -> list[Any]:
    reply: list[Any] = await link.script(PEEK, [LIST, FENCE], [count, budget, largest])
    return reply


async def test_peek_shows_what_was_pushed_first(link: Link, redis_client: Client) -> None:
    """In the order of pushing, with the fence, and changing nothing."""
    push(redis_client, *[str(n) for n in range(40)])
    before = everything(redis_client)
    assert await peek(link) == [b"", *[b"%d" % n for n in range(40)]]
    assert everything(redis_client) == before
    redis_client.set(FENCE, "f7")
    assert (await peek(link))[:2] == [b"f7", b"0"]


async def test_peek_at_nothing(link: Link, redis_client: Client) -> None:
    """An empty list is no list."""
    assert await peek(link) == [b""]
    push(redis_client, "a")
    assert await peek(link, count=0) == [b""]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 33])
async def test_peek_stops_at_its_count(link: Link, redis_client: Client, count: int) -> None:
    """Also where the slices in which it reads meet."""
    push(redis_client, *[str(n) for n in range(34)])
    assert await peek(link, count=count) == [b"", *[b"%d" % n for n in range(count)]]


async def test_peek_at_a_key_of_another_type_says_so(link: Link, redis_client: Client) -> None:
    """The router tells a list that is none by this word."""
    redis_client.set(LIST, "something else")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await peek(link)


async def test_a_batch_is_full_at_its_bytes(link: Link, redis_client: Client) -> None:
    """As many as fit, at least one."""
    push(redis_client, *["x" * 100] * 5)
    assert len(await peek(link, budget=299)) == 1 + 2
    assert len(await peek(link, budget=300)) == 1 + 3
    assert len(await peek(link, budget=301)) == 1 + 3
    assert len(await peek(link, budget=1)) == 1 + 1


async def test_bytes_count_across_slices(link: Link, redis_client: Client) -> None:
    """The budget holds for the whole batch, not for each slice of 16."""
    push(redis_client, *["x" * 100] * 40)
    assert len(await peek(link, budget=2_000)) == 1 + 20


async def test_an_oversized_callback_shows_its_size_and_beginning(link: Link, redis_client: Client) -> None:
    """A monster crosses the wire only in name, in its place, and the others come whole."""
    push(redis_client, "a", "m" * 5_000, "b")
    assert await peek(link, largest=4_999) == [b"", b"a", [5_000, b"m" * 256], b"b"]
    assert await peek(link, largest=5_000) == [b"", b"a", b"m" * 5_000, b"b"]


async def test_oversized_callbacks_alone_end_a_batch_too(link: Link, redis_client: Client) -> None:
    """Their beginnings count against the budget."""
    push(redis_client, *["m" * 5_000] * 30)
    assert len(await peek(link, budget=1_024, largest=1_000)) == 1 + 16  # a slice
    assert len(await peek(link, count=20, largest=1_000)) == 1 + 20


# The router's side of it.


def transfer(store: Store, settings: Settings = SETTINGS) -> Transfer:
    return Transfer(store, store, settings.keys(), settings, structlog.get_logger())


def answer(n: int, session_id: str = "s-1") -> bytes:
    callback = {"action_id": f"a-{n}", "session_id": session_id, "result": {"response": str(n)}}
    return json.dumps(callback).encode()


def answers(redis: Client, session_id: str = "s-1") -> list[int]:
    """The answers in a session's log, in order."""
    return [int(json.loads(body + b'"":0}}')["data"]["response"]) for body in log_of(redis, session_id)]


class TestDrain:
    async def test_moves_batch_by_batch_and_gives_others_their_turn(
        self, store: Store, redis_client: Client
    ) -> None:
        """Up to so many batches, then True; False when nothing waits."""
        push(redis_client, *map(answer, range(25)))
        mover = transfer(store, replace(SETTINGS, transfer_batch=5))
        assert await mover.drain(LIST, "acme", 2) is True
        assert answers(redis_client) == list(range(10))
        assert await mover.drain(LIST, "acme", 4) is False
        assert answers(redis_client) == list(range(25))
        assert await mover.drain(LIST, "acme", 4) is False
        assert (mover.counts.appended, mover.counts.batches) == (25, 5)

    async def test_two_routers_on_one_list_double_nothing(
        self, redis_url: str, store: Store, redis_client: Client
    ) -> None:
        """The fence lets one of them through; each callback is one entry, in the order of the list."""
        push(redis_client, *map(answer, range(300)))
        settings = replace(SETTINGS, transfer_batch=3)
        target = parse_redis_url(redis_url)
        async with running(open_store(target, "second", timeout_s=5, on_connect=can_watch)) as second:
            movers = [transfer(store, settings), transfer(second, settings)]

            async def drain(mover: Transfer) -> None:
                while await mover.drain(LIST, "acme", 4):
                    pass

            await asyncio.gather(*map(drain, movers))
        assert answers(redis_client) == list(range(300))
        assert sum(mover.counts.appended for mover in movers) == 300
        assert sum(mover.counts.duplicates for mover in movers) == 0
        assert sum(mover.counts.conflicts for mover in movers) > 0

    async def test_a_conflict_is_looked_at_again(
        self, store: Store, redis_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Refused by the fence, nothing is moved, and the list stands in line again."""

        def judge_slowly(*args: Any) -> Any:
            redis_client.set(FENCE, "of another router")
            return judge(*args)

        push(redis_client, answer(0))
        mover = transfer(store)
        with monkeypatch.context() as patch:
            patch.setattr("backplane.router.transfer.judge", judge_slowly)
            assert await mover.drain(LIST, "acme", 4) is True
        assert (mover.counts.conflicts, mover.counts.appended) == (1, 0)
        assert await mover.drain(LIST, "acme", 4) is False
        assert answers(redis_client) == [0]

    async def test_an_oversized_callback_is_a_dead_letter(self, store: Store, redis_client: Client) -> None:
        """Whole, if it fits there; and those around it arrive."""
        big = b"x" * 3_000
        push(redis_client, answer(0), big, answer(1))
        mover = transfer(store, replace(SETTINGS, callback_max_bytes=2_000))
        await mover.drain(LIST, "acme", 4)
        assert answers(redis_client) == [0, 1]
        [letter] = letters(redis_client)
        assert (letter[b"reason"], letter[b"raw"]) == (b"too_large", big)
        assert b"3000" in letter[b"detail"]

    async def test_counts_tell_what_was_done(self, store: Store, redis_client: Client) -> None:
        """An operator sees what became of every callback."""
        push(redis_client, answer(0), b"bad", answer(0), b"worse", b"worst")
        mover = transfer(store, replace(SETTINGS, dead_letters_max=2))
        await mover.drain(LIST, "acme", 4)
        counts = mover.counts
        assert (counts.appended, counts.duplicates, counts.dead_letters) == (1, 1, 3)
        assert (counts.dead_letters_dropped, counts.publishes_refused, counts.conflicts) == (1, 0, 0)

    @pytest.mark.parametrize("callback", [b"not json", answer(0)], ids=["bad callback", "unusable session"])
    async def test_a_list_with_dead_letters_is_in_their_index(
        self, store: Store, redis_client: Client, callback: bytes
    ) -> None:
        """Whoever buried it, router or script, an operator finds it."""
        redis_client.set(session(), "something else")
        push(redis_client, callback)
        await transfer(store).drain(LIST, "acme", 1)
        assert len(letters(redis_client)) == 1
        assert redis_client.smembers(KEYS.dead_letter_lists) == {LIST.encode()}

    async def test_a_mistake_of_the_router_buries_one_callback(
        self, store: Store, redis_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An exception that nobody foresaw costs its callback, not the tenant's others."""

        def mistaken(raw: bytes, tenant_id: str, at: str, sampled: str) -> Any:
            if raw == b"surprise":
                raise ZeroDivisionError
            return dispatch(raw, tenant_id, at, sampled)

        monkeypatch.setattr("backplane.router.transfer.dispatch", mistaken)
        push(redis_client, answer(0), b"surprise", answer(1))
        await transfer(store).drain(LIST, "acme", 1)
        assert answers(redis_client) == [0, 1]
        assert [letter[b"reason"] for letter in letters(redis_client)] == [b"router_error"]

    async def test_the_epoch_of_a_new_session_is_its_own(self, store: Store, redis_client: Client) -> None:
        """A log that was lost and begun anew has another epoch."""
        push(redis_client, answer(0))
        await transfer(store).drain(LIST, "acme", 1)
        first = record(redis_client)["e"]
        redis_client.flushall()
        push(redis_client, answer(0))
        await transfer(store).drain(LIST, "acme", 1)
        assert record(redis_client)["e"] != first
