"""Revocations in a real Redis: what one pod decides, all others know soon, also when nobody told them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from backplane import revocations
from backplane.errors import LimitReached, RedisRefused, RedisUnavailable
from backplane.log import get_logger
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.revocations import Kind, Revocation, Revocations
from backplane.scripts import REVOCATIONS, Script
from backplane.settings import Settings
from backplane.store import Store
from backplane.wire import Argument
from tests.support.valkey import Client, eventually, running

KEYS = Settings().keys()
NOW = float(int(time.time())) + 3_600  # nothing that is in force at that time ends during the tests
LATER = int(NOW) + 1_000


class Pod:
    """One pod's view.

    Attributes:
        told: what it was told of as new, in order.
        replies: what it was answered when it read, without the entries: how many, and whether that was all.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.told: list[Revocation] = []
        self.replies: list[tuple[int, bool]] = []
        self.all = Revocations(self._watched(store), KEYS, self.told.extend, get_logger())

    def _watched(self, store: Store) -> Store:
        real = store.script

        async def script(script: Script, keys: list[str], args: list[Argument]) -> Any:
            reply = await real(script, keys, args)
            if script is REVOCATIONS:
                _lineage, _changes, whole, *told = reply
                self.replies.append((len(told) // 2 if whole else len(told), bool(whole)))
            return reply

        return _With(store, script)

    async def revoke(
        self, name: str, kind: Kind = "user", until: float = LATER, now: float = NOW
    ) -> Revocation:
        entry = Revocation(kind, "acme", name, NOW, int(until))
        await self.all.revoke(entry, now)
        return entry

    async def lift(self, name: str, kind: Kind = "user") -> bool:
        return await self.all.lift(kind, "acme", name, NOW)

    def hits(self, user: str) -> bool:
        return self.all.hits("acme", user, None, NOW)

    async def names(self) -> list[str]:
        return [entry.name for entry in await self.all.everything()]


class _With:
    """A store with another `script`."""

    def __init__(self, store: Store, script: Any) -> None:
        self._store = store
        self.script = script

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def one(store: Store) -> Pod:
    return Pod(store)


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Pod]:
    """A pod with connections of its own."""
    async with running(open_store(parse_redis_url(redis_url), "other", timeout_s=30)) as store:
        yield Pod(store)


@asynccontextmanager
async def keeping_up(pod: Pod) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(pod.all.run())
    try:
        await eventually(lambda: pod.all.loaded)
        yield task
    finally:
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# From one to the other.


async def test_nothing_is_revoked(one: Pod) -> None:
    """A service that is new has none, and says that it knows that."""
    assert not one.all.loaded
    await one.all.read()
    assert one.all.loaded
    assert (len(one.all), one.told, one.hits("ann")) == (0, [], False)


async def test_revoked_here_is_revoked_there(one: Pod, other: Pod) -> None:
    """At once for who decides, with the next look for the others; each is told of it once."""
    await other.all.read()
    entry = await one.revoke("ann")
    assert one.hits("ann")
    assert not other.hits("ann")
    for _ in range(3):
        await other.all.read()
        await one.all.read()

    assert other.hits("ann")
    assert one.told == other.told == [entry]


@pytest.mark.parametrize(
    "entry",
    [
        Revocation("token", "acme", "t-1", 5.5, LATER),
        Revocation("user", "acme", "ann@example.org", NOW + 0.123456, LATER + 5),
        Revocation("tenant", "acme", "", -1.0, LATER),
        Revocation("token", "acme", "a:{c}*'\"\\", 0.0, LATER),
    ],
    ids=lambda entry: str(entry.name),
)
async def test_entries_are_read_as_they_were_written(one: Pod, other: Pod, entry: Revocation) -> None:
    """Whether among the news or with all the others, whatever stands in them."""
    await one.revoke("before")
    await one.lift("before")
    await other.all.read()
    await one.all.revoke(entry, NOW)
    assert await other.all.everything() == [entry]
    assert other.replies[-1] == (1, False)
    late = Pod(other.all._store)
    assert await late.all.everything() == [entry]

    assert await one.all.lift(entry.kind, entry.tenant_id, entry.name, NOW)
    assert await other.all.everything() == await late.all.everything() == []


async def test_lifted(one: Pod, other: Pod) -> None:
    """Whoever does it; what is not there is not lifted, and changes nothing."""
    await one.revoke("ann")
    await one.revoke("bob")
    await other.all.read()
    assert await other.lift("ann")
    await one.all.read()
    assert (one.hits("ann"), other.hits("ann"), one.hits("bob")) == (False, False, True)
    version = one.all._version
    assert not await one.lift("ann")
    assert not await one.lift("bob", "token")
    assert one.all._version == version

    assert await one.names() == await other.names() == ["bob"]
    assert [entry.name for entry in one.told] == ["ann", "bob"]


async def test_revoked_again(one: Pod, other: Pod) -> None:
    """The newer word counts, and is told of as new: there may be sockets that it ends."""
    await one.revoke("ann")
    await other.all.read()
    again = Revocation("user", "acme", "ann", NOW + 50, LATER + 50)
    await one.all.revoke(again, NOW)
    await other.all.read()

    assert await one.all.everything() == await other.all.everything() == [again]
    assert other.told[1:] == [again]
    await one.all.revoke(again, NOW)
    await other.all.read()
    assert other.told[2:] == []


async def test_a_pod_that_comes_later(one: Pod, other: Pod) -> None:
    """It is told all that there is, in one look."""
    for name in ("c", "a", "b"):
        await one.revoke(name)
    await one.lift("b")
    await other.all.read()

    assert await other.names() == ["a", "c"]
    assert sorted(entry.name for entry in other.told) == ["a", "c"]
    assert other.replies[0] == (2, True)


# News, or all of it.


async def test_only_what_is_new_is_read(one: Pod, other: Pod) -> None:
    """A pod that has read a hundred thousand does not read them again for one more."""
    for number in range(20):
        await one.revoke(f"u-{number}")
    await other.all.read()
    await one.revoke("ann")
    await one.lift("u-3")
    for _ in range(3):
        await other.all.read()

    assert other.replies == [(20, True), (2, False), (0, False), (0, False)]
    assert len(other.all) == 20


@pytest.mark.parametrize("behind", [2, 4, 10])
async def test_more_news_than_are_kept(
    one: Pod, other: Pod, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is too far behind reads everything, and knows the same."""
    monkeypatch.setattr(revocations, "_NEWS", 3)
    await one.revoke("old")
    await other.all.read()
    await one.lift("old")
    for number in range(behind - 1):
        await one.revoke(f"u-{number}")
    await other.all.read()

    assert other.replies[-1] == ((behind, False) if behind <= 3 else (behind - 1, True))
    assert await other.names() == await one.names() == sorted(f"u-{number}" for number in range(behind - 1))
    assert not other.hits("old")


async def test_news_are_bounded(one: Pod, redis_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that grew for ever would be one more thing to run out of memory."""
    monkeypatch.setattr(revocations, "_NEWS", 3)
    for number in range(10):
        await one.revoke(f"u-{number}")

    assert redis_client.llen(KEYS.revocation_news) == 3


async def test_news_are_taken_in_their_order(one: Pod, other: Pod) -> None:
    """Revoked, lifted, revoked: the last word counts."""
    await one.revoke("before")
    await one.lift("before")
    await other.all.read()
    await one.revoke("a")
    await one.lift("a")
    await one.revoke("b")
    await one.lift("b")
    await one.revoke("b")
    await other.all.read()

    assert other.replies[-1] == (5, False)
    assert await other.names() == ["b"]


async def test_redis_has_lost_everything(one: Pod, other: Pod, redis_client: Client) -> None:
    """What the pods still know they write back: no revoked token counts again because of it."""
    for name in ("a", "b", "c"):
        await one.revoke(name)
    await other.all.read()
    await other.lift("b")
    await one.all.read()
    redis_client.flushall()
    await other.all.read()
    assert other.hits("a")
    await one.revoke("d")
    await other.all.read()

    assert await one.names() == await other.names() == ["a", "c", "d"]
    assert sorted(redis_client.hkeys(KEYS.revocations)) == [b"user acme a", b"user acme c", b"user acme d"]


async def test_redis_counts_anew(one: Pod, other: Pod, redis_client: Client) -> None:
    """A version that a pod knew of other data is not taken for the present one."""
    await one.revoke("a")
    await other.all.read()
    redis_client.flushall()
    stranger = Revocation("user", "acme", "b", NOW, LATER)
    await Revocations(one.store, KEYS, lambda _new: None, get_logger()).revoke(stranger, NOW)
    await other.all.read()

    assert (other.hits("a"), other.hits("b")) == (True, True)


async def test_what_others_wrote_there(one: Pod, other: Pod, redis_client: Client) -> None:
    """It is passed over: no pod ends because of what stands in Redis."""
    await one.revoke("a")
    for words in (b"user acme", b"what acme b", b"user acme c d", b"\xff\n"):
        redis_client.hset(KEYS.revocations, words, b"x y")
        redis_client.lpush(KEYS.revocation_news, b"+" + words + b" 1 2 3")
        redis_client.hincrby(KEYS.revocation_version, "n", 1)
    await one.all.read()
    await other.all.read()

    assert await one.names() == await other.names() == ["a"]


async def test_a_tenants_share(one: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant does not use up what there is for all; what goes makes room again."""
    monkeypatch.setattr(revocations, "MOST_OF_A_TENANT", 2)
    for name in ("a", "b"):
        await one.revoke(name)
    with pytest.raises(LimitReached):
        await one.revoke("c")
    await one.all.revoke(Revocation("user", "other", "c", NOW, LATER), NOW)
    await one.lift("a")
    await one.revoke("c")

    assert await one.names() == ["b", "c", "c"]


async def test_a_later_one_does_not_weaken(one: Pod) -> None:
    """What was revoked up to now stays so, whatever is said of earlier tokens afterwards."""
    await one.revoke("ann")
    await one.all.revoke(Revocation("user", "acme", "ann", 1.0, LATER - 500), NOW)

    assert await one.all.everything() == [Revocation("user", "acme", "ann", NOW, LATER)]


async def test_what_has_ended_hits_nothing(one: Pod) -> None:
    """Although nobody has cleared it away yet."""
    ended = time.time() - 1
    await one.revoke("ann", until=ended, now=ended - 10)

    assert not one.hits("ann")
    assert await one.names() == []


async def test_redis_has_lost_the_last(one: Pod, other: Pod, redis_client: Client) -> None:
    """What an older state of Redis lacks is written back, too."""
    await one.revoke("a")
    held = {key: redis_client.dump(key) for key in redis_client.keys("ao:{revocations}*")}
    for name in ("b", "c"):
        await one.revoke(name)
    await other.all.read()
    redis_client.flushall()
    for key, value in held.items():
        redis_client.restore(key, 0, value)
    await other.all.read()

    assert await other.names() == await one.names() == ["a", "b", "c"]


# Keeping up.


async def test_a_publish_that_was_lost(one: Pod, other: Pod) -> None:
    """It is found all the same, within the second that is promised."""
    async with keeping_up(other):
        await one.revoke("ann")
        await eventually(lambda: other.hits("ann"), 1.0)
        await one.lift("ann")
        await eventually(lambda: not other.hits("ann"), 1.0)


async def test_what_is_published_is_looked_at_at_once(
    one: Pod, other: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told does not wait for his next look."""
    monkeypatch.setattr(revocations, "_ASK_EVERY_S", 3_600.0)
    async with keeping_up(other):
        for number in range(5):
            await one.revoke(f"u-{number}")
            other.all.look()
            await eventually(lambda number=number: other.hits(f"u-{number}"))  # type: ignore[misc]


async def test_it_is_published(one: Pod, redis_client: Client) -> None:
    """Each change, on the channel that pods subscribe to."""
    pubsub = redis_client.pubsub()
    pubsub.subscribe(KEYS.revocation_channel)
    assert pubsub.get_message(timeout=5)["type"] == "subscribe"
    await one.revoke("ann")
    await one.lift("ann")
    told = [pubsub.get_message(timeout=5)["type"] for _ in range(2)]
    pubsub.close()

    assert told == ["message", "message"]
    assert int(redis_client.hget(KEYS.revocation_version, "n")) == 2


async def test_while_redis_is_away(redis_url: str, redis_client: Client) -> None:
    """What is known stays in force; the next connection brings the rest, and nobody dies of it."""
    store = open_store(parse_redis_url(redis_url), "under-test", timeout_s=30)
    async with running(store):
        pod = Pod(store)
        async with keeping_up(pod):
            await pod.revoke("ann")
            for number in range(3):
                [victim] = [c["id"] for c in redis_client.client_list() if c["name"] == "under-test"]
                before = store.connects
                redis_client.client_kill_filter(_id=victim)
                assert pod.hits("ann")
                await eventually(lambda before=before: store.connects > before and store.up)  # type: ignore[misc]
                await pod.revoke(f"u-{number}")
                await eventually(lambda number=number: pod.hits(f"u-{number}"))  # type: ignore[misc]


async def test_without_redis(redis_url: str) -> None:
    """Nobody is said to know anything, and nobody to have changed anything."""
    pod = Pod(open_store(parse_redis_url(redis_url), "never-connected", timeout_s=1))
    with pytest.raises(RedisUnavailable):
        await pod.all.read()
    with pytest.raises(RedisUnavailable):
        await pod.revoke("ann")
    with pytest.raises(RedisUnavailable):
        await pod.lift("ann")
    with pytest.raises(RedisUnavailable):
        await pod.all.everything()
    assert not pod.all.loaded
    assert not pod.hits("ann")


async def test_a_redis_that_refuses(one: Pod, redis_client: Client) -> None:
    """What cannot be read changes nothing that is known."""
    await one.revoke("ann")
    redis_client.delete(KEYS.revocation_version)
    redis_client.lpush(KEYS.revocation_version, "no hash")
    with pytest.raises(RedisRefused):
        await one.all.read()

    assert one.hits("ann")


# How many there may be, and for how long.


async def test_there_is_an_end(one: Pod, other: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is refused and changes nothing; what is there may be changed, or lifted for another."""
    monkeypatch.setattr(revocations, "_MOST", 3)
    for name in ("a", "b", "c"):
        await one.revoke(name)
    for _ in range(2):
        with pytest.raises(LimitReached, match="3"):
            await other.revoke("d")
    assert not other.hits("d")
    await other.revoke("a", until=LATER + 5)
    assert await one.names() == ["a", "b", "c"]
    await one.lift("b")
    await other.revoke("d")

    assert await one.names() == ["a", "c", "d"]


async def test_expired_ones_make_room(
    one: Pod, redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have nothing left to revoke; the next change clears them away, and leaves nothing of them."""
    monkeypatch.setattr(revocations, "_MOST", 3)
    await one.revoke("a", until=NOW + 10)
    await one.revoke("b", until=NOW + 20)
    await one.revoke("c", until=NOW + 30)
    with pytest.raises(LimitReached):
        await one.revoke("d", now=NOW + 9)
    await one.revoke("d", now=NOW + 20)

    assert sorted(redis_client.hkeys(KEYS.revocations)) == [b"user acme c", b"user acme d"]
    assert sorted(redis_client.zrange(KEYS.revocation_ends, 0, -1)) == [b"user acme c", b"user acme d"]


async def test_many_expired_ones(one: Pod, redis_client: Client) -> None:
    """They go a hundred at a time: no single change holds up Redis for all of them."""
    for number in range(250):
        await one.revoke(f"u-{number}", until=NOW + 1)
    left = []
    for number in range(3):
        await one.revoke(f"new-{number}", now=NOW + 2)
        left.append(redis_client.hlen(KEYS.revocations) - number - 1)

    assert left == [150, 50, 0]
    assert redis_client.zcard(KEYS.revocation_ends) == redis_client.hlen(KEYS.revocations) == 3


async def test_one_that_was_prolonged(one: Pod, redis_client: Client) -> None:
    """It goes at its new end, not at the old one."""
    await one.revoke("a", until=NOW + 10)
    await one.revoke("a", until=NOW + 100)
    await one.revoke("b", now=NOW + 50)
    assert redis_client.hexists(KEYS.revocations, "user acme a")
    await one.revoke("c", now=NOW + 100)

    assert not redis_client.hexists(KEYS.revocations, "user acme a")


async def test_one_that_was_lifted_leaves_no_end_behind(one: Pod, redis_client: Client) -> None:
    """Or a later one of the same name would go at that time."""
    await one.revoke("a", until=NOW + 10)
    await one.lift("a")
    assert redis_client.zcard(KEYS.revocation_ends) == 0
    await one.revoke("a", until=NOW + 100)
    await one.revoke("b", now=NOW + 50)

    assert one.hits("a")
    assert redis_client.hexists(KEYS.revocations, "user acme a")


# Agreement.


async def test_many_at_once(one: Pod, other: Pod) -> None:
    """None is lost between two pods that revoke at the same time."""
    await asyncio.gather(
        *[pod.revoke(f"{name}-{n}") for n in range(50) for name, pod in (("a", one), ("b", other))]
    )
    names = await one.names()

    assert len(names) == 100
    assert await other.names() == names
    assert len(one.told) == len({entry.what for entry in one.told}) == 100


@pytest.mark.parametrize("seed", range(8))
async def test_they_agree(one: Pod, other: Pod, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does what, and whenever they look, in the end they know what was said last."""
    monkeypatch.setattr(revocations, "_NEWS", 4)
    chosen, model = random.Random(seed), dict[str, Revocation]()
    for step in range(120):
        pod = chosen.choice((one, other))
        name = chosen.choice("abcdef")
        deed = chosen.random()
        if deed < 0.45:
            entry = Revocation("user", "acme", name, NOW + step, LATER)
            await pod.all.revoke(entry, NOW)
            model[name] = entry
        elif deed < 0.75:
            assert await pod.lift(name) is (name in model)
            model.pop(name, None)
        else:
            await pod.all.read()
            assert {entry.name: entry for entry in pod.all._known.values()} == model
    wanted = sorted(model.values(), key=lambda entry: entry.what)

    assert await one.all.everything() == wanted
    assert await other.all.everything() == wanted
