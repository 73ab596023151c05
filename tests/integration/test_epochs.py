"""A log that another server goes on with: its epoch ends, its entries and what stands of old positions stay.

A server is another one by its lineage, which a link tells the scripts; here a test says which. What a server
has lost is taken back by restoring its keys as they were.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from backplane.errors import RedisRefused
from backplane.link import Link
from backplane.position import Batch, Position
from backplane.redis_client import parse_redis_url
from backplane.session_log import Mark, Page, parse_push
from backplane.settings import Settings
from backplane.store import Store
from tests.integration.test_session_log import LIST, SESSION, SETTINGS, Desk, said, shape
from tests.integration.test_transfer_script import Move, appends, entry, letters, log_of, push, session
from tests.integration.test_transfer_script import record as fields_of
from tests.support.sessions import begun
from tests.support.valkey import Client, Valkey, running

EVERYTHING = list("abcdefghijklmnopqrstuvwxyz")

Held = dict[bytes, tuple[bytes, int]]


class Servers(Desk):
    """A desk whose Redis is one server after the other."""

    def __init__(self, store: Store, redis: Client, settings: Settings = SETTINGS) -> None:
        super().__init__(store, redis, settings)
        self._number = 0

    def next_server(self) -> None:
        """Another one goes on with all there is."""
        self._number += 1
        self.store.links[0].lineage = f"{self._number:016x}"

    def hold(self) -> Held:
        """All that Redis holds."""
        return {key: (self.redis.dump(key), self.redis.pttl(key)) for key in self.redis.keys("*")}

    def rewind(self, held: Held) -> None:
        """Another one goes on, with no more than was held once."""
        self.next_server()
        self.redis.flushall()
        for key, (value, ttl_ms) in held.items():
            self.redis.restore(key, max(ttl_ms, 0), value)

    async def read(self, position: Position) -> Page:
        return await self.log.read(SESSION, position)

    async def head(self) -> Position:
        position = (await self.log.heads([SESSION]))[0]
        assert isinstance(position, Position)
        return position

    @property
    def ended(self) -> list[str]:
        """The epochs that ended, as the record has them."""
        return (self.redis.hget(SESSION, "p") or b"").decode().split()


@pytest.fixture
def servers(store: Store, redis_client: Client) -> Servers:
    servers = Servers(store, redis_client)
    servers.next_server()
    return servers


# One change.


async def test_seqs_and_entries_go_on_in_a_new_epoch(servers: Servers) -> None:
    """The log is the same and only longer: no seq is given twice, and none is left out."""
    await servers.say("a", "b")
    first = await servers.head()
    servers.next_server()
    await servers.say("c")
    second = await servers.head()
    await servers.say("d")

    assert first.epoch != second.epoch
    assert (first.seq, second.seq) == (2, 3)
    assert await servers.head() == Position(second.epoch, 4)
    assert servers.ended == [str(first)]
    assert shape(await servers.resume()) == ("replayed", 0, 4, 1, list("abcd"))


async def test_the_new_epoch_is_published(servers: Servers, redis_client: Client) -> None:
    """Live messages say which epoch they are of from its first on."""
    await servers.say("a")
    servers.next_server()
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(SESSION)
        pubsub.get_message(timeout=5)
        await servers.say("b")
        message = pubsub.get_message(timeout=5)
    batch = parse_push(message["data"])
    assert isinstance(batch, Batch)
    assert Position(batch.epoch, batch.first) == await servers.head()


async def test_reading_and_asking_end_no_epoch(servers: Servers) -> None:
    """A server that has appended nothing may yet have lost nothing: positions stay what they are."""
    await servers.say("a", "b")
    before = await servers.head()
    servers.next_server()
    assert await begun(servers.log, SESSION) == before
    assert (await servers.resume(before)).page.epoch == before.epoch
    assert (await servers.read(before)).epoch == before.epoch
    assert await servers.head() == before
    assert servers.ended == []


async def test_a_cursor_of_the_ended_epoch_goes_on(servers: Servers) -> None:
    """Wherever it stands: it gets what follows, with no reset, and positions of the new epoch."""
    await servers.say(*"abc")
    epoch = await servers.epoch()
    servers.next_server()
    await servers.say(*"de")
    for seq in range(4):
        resumed = await servers.resume(Position(epoch, seq))
        assert shape(resumed) == ("replayed", seq, 5, 1, list("abcde")[seq:])
        assert resumed.page.epoch == await servers.epoch() != epoch


async def test_a_page_of_the_ended_epoch_goes_on(servers: Servers) -> None:
    """A reader in the middle of the log reads on; it is told the new epoch and what stands of the old one."""
    await servers.say(*"abc")
    epoch = await servers.epoch()
    servers.next_server()
    await servers.say(*"de")
    for seq in range(4):
        page = await servers.read(Position(epoch, seq))
        assert (page.epoch, page.head, page.standing) == (await servers.epoch(), 5, 3)
        assert page.batch.epoch == page.epoch
        assert (page.batch.first, said(page.batch.entries)) == (seq + 1, list("abcde")[seq:])


@pytest.mark.parametrize("after", ["", "x", "xy", "xyz"])
async def test_a_cursor_beyond_what_the_server_got_is_a_reset(servers: Servers, after: str) -> None:
    """Whether nothing was appended since, or less, as much or more than was lost."""
    await servers.say(*"abc")
    held = servers.hold()
    await servers.say(*"de")
    cursor = await servers.head()
    servers.rewind(held)
    await servers.say(*after)
    left = [*"abc", *after]

    for seq in (4, 5):
        assert shape(await servers.resume(Position(cursor.epoch, seq))) == ("reset", 0, len(left), 1, left)
        page = await servers.read(Position(cursor.epoch, seq))
        assert (page.standing, page.batch.entries) == (3, [])
    for seq in (0, 3):
        resumed = await servers.resume(Position(cursor.epoch, seq))
        assert shape(resumed) == ("replayed", seq, len(left), 1, left[seq:])
        page = await servers.read(Position(cursor.epoch, seq))
        assert (page.standing, said(page.batch.entries)) == (3, left[seq:])


async def test_a_trimmed_log_is_a_reset_in_any_epoch(servers: Servers, redis_client: Client) -> None:
    """A position that stands is of no use if the log no longer reaches back to it."""
    short = Servers(servers.store, redis_client, replace(SETTINGS, session_log_max_entries=3))
    await short.say(*"abc")
    epoch = await short.epoch()
    servers.next_server()
    await short.say(*"de")

    assert shape(await short.resume(Position(epoch, 1))) == ("reset", 2, 5, 3, list("cde"))
    assert shape(await short.resume(Position(epoch, 2))) == ("replayed", 2, 5, 3, list("cde"))
    page = await short.read(Position(epoch, 1))
    assert (page.oldest, page.standing, page.batch.first) == (3, 3, 3)


async def test_an_expired_log_goes_on_in_a_new_epoch(servers: Servers) -> None:
    """Its entries are gone, its seqs are not given again, and who lacks them is told."""
    await servers.say(*"abc")
    epoch = await servers.epoch()
    servers.redis.delete(f"{SESSION}:log")
    servers.next_server()
    await servers.say("d")

    assert shape(await servers.resume(Position(epoch, 3))) == ("replayed", 3, 4, 4, ["d"])
    assert shape(await servers.resume(Position(epoch, 2))) == ("reset", 3, 4, 4, ["d"])
    assert int(fields_of(servers.redis)["b"]) == sum(map(len, log_of(servers.redis)))


# Sessions that have not begun, or began long ago.


async def test_a_session_that_was_opened_before_its_first_message(servers: Servers) -> None:
    """The cursor that a client was given with its greeting, or its send, is as good as any."""
    cursor = await begun(servers.log, SESSION)
    assert cursor.seq == 0
    opened = await servers.resume(cursor)
    servers.next_server()
    await servers.say("a", "b")

    assert opened.page.epoch == cursor.epoch
    assert servers.ended == [f"{cursor.epoch}:0"]
    assert shape(await servers.resume(cursor)) == ("replayed", 0, 2, 1, ["a", "b"])
    page = await servers.read(cursor)
    assert (page.standing, said(page.batch.entries)) == (0, ["a", "b"])
    assert (await servers.resume(Position(cursor.epoch, 1))).status == "reset"


async def test_a_session_that_the_same_server_opened_has_one_epoch(servers: Servers) -> None:
    """Opened, sent to and answered by one server: there is nothing to end."""
    cursor = (await servers.resume()).page.epoch
    assert (await begun(servers.log, SESSION)).epoch == cursor
    await servers.say("a")
    assert await servers.head() == Position(cursor, 1)
    assert servers.ended == []


async def test_a_record_of_an_older_version(servers: Servers) -> None:
    """Nobody knows which server wrote it: its epoch ends once, and its positions stand."""
    await servers.say("a", "b")
    epoch = await servers.epoch()
    servers.redis.hdel(SESSION, "l")
    assert shape(await servers.resume(Position(epoch, 1))) == ("replayed", 1, 2, 1, ["b"])
    await servers.say("c")
    second = await servers.head()
    await servers.say("d")

    assert await servers.head() == Position(second.epoch, 4)
    assert servers.ended == [f"{epoch}:2"]
    assert shape(await servers.resume(Position(epoch, 2))) == ("replayed", 2, 4, 1, ["c", "d"])


async def test_a_session_begun_anew_has_no_past(servers: Servers) -> None:
    """Its record was lost with all its epochs: their positions are of no log."""
    await servers.say("a")
    old = await servers.epoch()
    servers.next_server()
    await servers.say("b")
    servers.redis.delete(SESSION)
    await servers.say("c")

    assert servers.ended == []
    for epoch in (old, "another"):
        assert shape(await servers.resume(Position(epoch, 1))) == ("reset", 0, 1, 1, ["c"])


# One after the other.


async def test_positions_of_every_ended_epoch_stand(servers: Servers) -> None:
    """Through several changes, each up to its own end."""
    ends: list[Position] = []
    for n in range(4):
        await servers.say(*EVERYTHING[2 * n : 2 * n + 2])
        ends.append(await servers.head())
        servers.next_server()
    await servers.say("i")

    assert servers.ended == [str(end) for end in reversed(ends)]
    for end in ends:
        for seq in (end.seq - 1, end.seq):
            resumed = await servers.resume(Position(end.epoch, seq))
            assert shape(resumed) == ("replayed", seq, 9, 1, EVERYTHING[seq:9])
        assert (await servers.resume(Position(end.epoch, end.seq + 1))).status == "reset"
        assert (await servers.read(end)).standing == end.seq


async def test_an_epoch_that_was_lost_is_of_no_log(servers: Servers) -> None:
    """The second server's messages were lost with it; the third goes on from where the first one's ended."""
    await servers.say(*"abc")
    first, held = await servers.head(), servers.hold()
    servers.next_server()
    await servers.say(*"xyz")
    second = await servers.head()
    servers.rewind(held)
    assert (await servers.resume(second)).status == "reset"
    await servers.say("d", "e")

    assert servers.ended == [str(first)]
    for seq in (0, 3, 4, 6):
        cursor = Position(second.epoch, seq)
        assert shape(await servers.resume(cursor)) == ("reset", 0, 5, 1, list("abcde"))
        assert (await servers.read(cursor)).standing == -1
    assert shape(await servers.resume(first)) == ("replayed", 3, 5, 1, ["d", "e"])


async def test_an_epoch_of_which_a_part_was_lost(servers: Servers) -> None:
    """Three servers, and the second one lost its end: each epoch stands as far as the third one got it."""
    await servers.say(*"ab")
    first = await servers.head()
    servers.next_server()
    await servers.say(*"cd")
    held = servers.hold()
    await servers.say(*"xyz")
    second = await servers.head()
    servers.rewind(held)
    await servers.say("e")
    third = await servers.head()
    servers.next_server()
    await servers.say("f")

    assert servers.ended == [str(third), f"{second.epoch}:4", str(first)]
    for epoch, stands in ((first.epoch, 2), (second.epoch, 4), (third.epoch, 5)):
        kept, lost = Position(epoch, stands), Position(epoch, stands + 1)
        assert shape(await servers.resume(kept)) == ("replayed", stands, 6, 1, list("abcdef")[stands:])
        assert (await servers.resume(lost)).status == "reset"
        assert (await servers.read(lost)).standing == stands


async def test_a_first_epoch_of_which_a_part_was_lost_late(servers: Servers) -> None:
    """Two changes, and then back to before the first: what stood in between counts no more."""
    await servers.say(*"ab")
    held = servers.hold()
    await servers.say("c")
    cursors = [await servers.head()]
    for text in "xy":
        servers.next_server()
        await servers.say(text)
        cursors.append(await servers.head())
    servers.rewind(held)
    await servers.say(*"defg")

    for cursor in cursors:
        assert shape(await servers.resume(cursor)) == ("reset", 0, 6, 1, list("abdefg"))
    assert shape(await servers.resume(Position(cursors[0].epoch, 2))) == ("replayed", 2, 6, 1, list("defg"))


async def test_only_so_many_ended_epochs_are_known(servers: Servers) -> None:
    """Eight; a position of an older one is a reset, as of any log that is not known."""
    ends: list[Position] = []
    for n in range(11):
        await servers.say(EVERYTHING[n])
        ends.append(await servers.head())
        servers.next_server()
    *_, last = ends

    assert (await servers.head()) == last
    assert servers.ended == [str(end) for end in reversed(ends[2:10])]
    assert [(await servers.resume(end)).status for end in ends] == ["reset"] * 2 + ["replayed"] * 9
    assert [(await servers.read(end)).standing for end in ends] == [-1, -1, *range(3, 12)]


# What was sent.


async def test_a_mark_of_the_ended_epoch_counts(servers: Servers) -> None:
    """A pod that has not heard of the change yet: what it sent was sent."""
    await servers.say(*"abc")
    epoch = await servers.epoch()
    servers.next_server()
    await servers.say(*"de")
    await servers.log.mark_sent([Mark(SESSION, Position(epoch, 2))])
    assert shape(await servers.resume()) == ("replayed", 2, 5, 1, list("cde"))
    await servers.log.mark_sent([Mark(SESSION, Position(epoch, 3))])
    assert shape(await servers.resume()) == ("replayed", 3, 5, 1, ["d", "e"])


async def test_a_mark_beyond_what_stands_hides_nothing(servers: Servers) -> None:
    """What was sent and then lost says nothing about what comes in its place."""
    await servers.say(*"abc")
    held = servers.hold()
    await servers.say(*"xy")
    sent = await servers.head()
    servers.rewind(held)
    await servers.say(*"de")
    await servers.log.mark_sent([Mark(SESSION, sent)])
    assert shape(await servers.resume()) == ("replayed", 3, 5, 1, ["d", "e"])


async def test_a_mark_of_a_lost_epoch_counts_for_nothing(servers: Servers) -> None:
    """Its seqs are of messages that are in no log."""
    await servers.say(*"ab")
    held = servers.hold()
    servers.next_server()
    await servers.say(*"xy")
    sent = await servers.head()
    servers.rewind(held)
    await servers.say(*"cde")
    await servers.log.mark_sent([Mark(SESSION, sent)])
    assert shape(await servers.resume()) == ("replayed", 0, 5, 1, list("abcde"))


async def test_what_was_sent_is_kept_through_a_change(servers: Servers) -> None:
    """A client without a cursor gets what follows, as ever."""
    await servers.say(*"abc")
    await servers.log.mark_sent([Mark(SESSION, await servers.head())])
    servers.next_server()
    assert shape(await servers.resume()) == ("fresh", 3, 3, 1, [])
    await servers.say("d")
    assert shape(await servers.resume()) == ("replayed", 3, 4, 1, ["d"])


# What ends no epoch, and what is undone.


async def begin(link: Link, redis: Client) -> None:
    """Two entries of epoch ``e1``, by the first server; then it is the second one's turn."""
    link.lineage = "a" * 16
    push(redis, "a", "b")
    assert (await Move({session(): appends([entry("a"), entry("b")])}).run(link))[:2] == [1, 2]
    link.lineage = "b" * 16


FIRST = {"e": "e1", "h": "2", "l": "a" * 16}
SECOND = Move(fence="f1", new_fence="f2", epoch="e2")


def state(redis: Client) -> dict[str, str]:
    """What a record says of its epoch."""
    return {name: value for name, value in fields_of(redis).items() if name in {"e", "h", "l", "p"}}


@pytest.mark.parametrize("digest", [b"digest:" + entry("b"), b""], ids=["duplicate", "chunk"])
async def test_what_is_not_logged_ends_no_epoch(link: Link, redis_client: Client, digest: bytes) -> None:
    """Known callbacks and live text leave the record as it is: its last entry is still the first server's."""
    await begin(link, redis_client)
    push(redis_client, "b")
    assert (await replace(SECOND, sessions={session(): [(0, digest, entry("b"))]}).run(link))[:2] == [1, 0]
    assert state(redis_client) == FIRST


async def test_a_duplicate_beside_a_new_one_ends_it_once(link: Link, redis_client: Client) -> None:
    """What was known under the old epoch is known under the new one."""
    await begin(link, redis_client)
    push(redis_client, "b", "c", "c")
    triples = appends([entry("b"), entry("c"), entry("c")])
    assert (await replace(SECOND, sessions={session(): triples}).run(link))[:3] == [1, 1, 2]
    assert log_of(redis_client) == [entry("a"), entry("b"), entry("c")]
    assert state(redis_client) == {"e": "e2", "h": "3", "l": "b" * 16, "p": "e1:2"}


async def test_each_session_has_its_own_epochs(link: Link, redis_client: Client) -> None:
    """One batch: what is new begins, what is old goes on, and what is not in it stays."""
    await begin(link, redis_client)
    push(redis_client, "c", "x")
    sessions = {session(): [(0, b"C", entry("c"))], session("s-2"): [(1, b"X", entry("x"))]}
    assert (await replace(SECOND, sessions=sessions).run(link))[:2] == [1, 2]
    assert state(redis_client) == {"e": "e2", "h": "3", "l": "b" * 16, "p": "e1:2"}
    second = {name: value for name, value in fields_of(redis_client, "s-2").items() if name in "ehlp"}
    assert second == {"e": "e22", "h": "1", "l": "b" * 16}


@pytest.mark.parametrize("suffix", [":log", ":seen"])
async def test_an_unusable_session_keeps_its_epoch(link: Link, redis_client: Client, suffix: str) -> None:
    """Its callback is a dead letter; nothing of the record is written before that shows."""
    await begin(link, redis_client)
    redis_client.set(session() + suffix, "something else")
    push(redis_client, "c")
    move = replace(SECOND, sessions={session(): [(0, b"C", entry("c"))]})
    assert (await move.run(link))[:4] == [1, 0, 0, 1]
    assert [letter[b"reason"] for letter in letters(redis_client)] == [b"session_unusable"]
    assert state(redis_client) == FIRST


@pytest.mark.parametrize(
    ("command", "tries"), [("rpush", 2), ("hset", 2), ("zadd", 2), ("zremrangebyscore", 1), ("pexpire", 1)]
)
async def test_a_refusal_half_way_through_a_change_neither_loses_nor_doubles(
    valkey: Valkey, link: Link, redis_client: Client, command: str, tries: int
) -> None:
    """Whichever write Redis refuses: at last the log is whole, and old positions stand as they did."""
    await begin(link, redis_client)
    redis_client.hset(session(), "a", 0)  # it will be tended to, so that every write is tried
    push(redis_client, "c", "d")
    move = replace(SECOND, sessions={session(): appends([entry("c"), entry("d")])})
    rules = ["reset", "on", ">secret", "~*", "&*", "+@all", f"-{command}"]
    redis_client.execute_command("ACL", "SETUSER", "limited", *rules)
    try:
        url = valkey.url.replace("redis://", "redis://limited:secret@")
        async with running(Link(parse_redis_url(url), "limited", timeout_s=5)) as limited:
            limited.lineage = link.lineage
            for _ in range(tries):
                with pytest.raises(RedisRefused, match=command):
                    await move.run(limited)
    finally:
        redis_client.execute_command("ACL", "DELUSER", "limited")
    assert redis_client.llen(LIST) == 2
    assert (await move.run(link))[0] == 1

    assert log_of(redis_client) == [entry(text) for text in "abcd"]
    assert state(redis_client) == {"e": "e2", "h": "4", "l": "b" * 16, "p": "e1:2"}
    assert int(fields_of(redis_client)["b"]) == sum(map(len, log_of(redis_client)))
    assert redis_client.zcard(f"{session()}:seen") == 4


# The arithmetic of it.

EPOCHS = files("backplane").joinpath("lua", "_epoch.lua").read_text("utf-8")


async def lua(link: Link, expression: str) -> Any:
    return await link.call("EVAL", f"{EPOCHS}\nreturn {expression}", 0)


@pytest.mark.parametrize(
    ("record", "epoch", "stands"),
    [
        ("{'e1', '7', false}", "e1", 7),
        ("{'e1', '7', false}", "e2", -1),
        ("{'e1', '7', false}", "", -1),
        ("{'e2', '9', 'e1:7'}", "e1", 7),
        ("{'e3', '9', 'e2:8 e1:7'}", "e2", 8),
        ("{'e3', '9', 'e2:8 e1:7'}", "e1", 7),
        (
            "{'e3', '9', 'e2:5 e1:7'}",
            "e1",
            5,
        ),  # behind 5 the second server's log ended: no later one has 6 and 7
        ("{'e3', '4', 'e2:5 e1:7'}", "e1", 4),
        ("{'e3', '9', 'e2:8 e1:7'}", "e", -1),
        ("{'e3', '9', 'e12:8 e1:7'}", "e1", 7),
        ("{'e3', '9', 'e12:8 e1:7'}", "e2", -1),
        ("{false, false, false}", "e1", -1),
        ("{false, false, false}", "", -1),
    ],
)
async def test_how_much_of_an_epoch_stands(link: Link, record: str, epoch: str, stands: int) -> None:
    """Up to the lowest end of all epochs since, its own included."""
    assert await lua(link, f"standing({record}, '{epoch}')") == stands


@pytest.mark.parametrize(
    ("record", "after"),
    [
        ("{'e1', '7', false}", "e1:7"),
        ("{'e2', '9', 'e1:7'}", "e2:9 e1:7"),
        ("{'e9', '9', 'e8:8 e7:7 e6:6 e5:5 e4:4 e3:3 e2:2 e1:1'}", "e9:9 e8:8 e7:7 e6:6 e5:5 e4:4 e3:3 e2:2"),
    ],
)
async def test_what_is_remembered_of_ended_epochs(link: Link, record: str, after: str) -> None:
    """The newest first, and eight at most."""
    assert await lua(link, f"earlier({record})") == after.encode()
