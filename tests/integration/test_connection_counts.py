"""Connection limits in a real Redis: they hold across pods, and counts are right whatever dies or is lost.

Every `Pod` here has a connection of its own, and takes notes as the gateway does. What Redis holds is
compared with all pods' notes: every field of every key.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from backplane import connection_counts
from backplane.connection_counts import ConnectionCounts, Full, Most, Place, tenant_connections
from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.log import get_logger
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.scripts import JOIN, LEASE, LEAVE, Script
from backplane.settings import Settings
from backplane.store import Store
from backplane.wire import Argument, Reply
from tests.support.topology import ValkeyCluster
from tests.support.valkey import Client, Valkey, eventually, running

KEYS = Settings().keys()
LIMITS = KEYS.tenant_limits("acme")
UNLIMITED = Most(0, 0, 0)
PLACE = Place("acme", "s-1", "ana")
KEPT_MS = 26 * 3600 * 1000

Counts = dict[str, dict[str, int]]
"""By key and pod."""


Hook = Callable[[Script, list[Argument]], Awaitable[None]]


async def _at_once(_script: Script, _args: list[Argument]) -> None:
    """For stores that hold nothing back."""


class Watched:
    """A store that lets a test act before a script is sent, and before its answer is seen."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before: Hook = _at_once
        self.behind: Hook = _at_once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        await self.before(script, args)
        reply = await self._store.script(script, keys, args)
        await self.behind(script, args)
        return reply


class Pod:
    """A pod as far as counting goes, with the notes that it takes of its connections."""

    def __init__(self, store: Store, pod_id: str, lease_s: float, keys: Keys) -> None:
        self.id = pod_id
        self.keys = keys
        self.store = Watched(store)
        self.places: list[Place] = []
        self.begun = self.rewrites = 0
        log = get_logger()
        self.counts = ConnectionCounts(cast("Store", self.store), keys, pod_id, lease_s, log, self.rewrite)

    async def join(self, place: Place = PLACE, most: Most = UNLIMITED) -> Full | None:
        full = await self.counts.join(place, most)
        if full is None:
            self.places.append(place)
        return full

    def leave(self, place: Place = PLACE) -> None:
        self.places.remove(place)
        self.counts.leave(place)

    async def rewrite(self) -> None:
        self.begun += 1
        try:
            await self.counts.rewrite(self.places)
        finally:
            self.rewrites += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Renewing; it ends without a goodbye."""
        task = asyncio.create_task(self.counts.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def pods(
    url: str, *pod_ids: str, lease_s: float = 30, timeout_s: float = 30, keys: Keys = KEYS
) -> AsyncIterator[list[Pod]]:
    """Pods that are connected, and have no lease yet."""
    async with AsyncExitStack() as stack:
        target = parse_redis_url(url)
        stores = [open_store(target, "under-test", timeout_s=timeout_s) for _ in pod_ids]
        for store in stores:
            await stack.enter_async_context(running(store))
        yield [Pod(store, pod_id, lease_s, keys) for store, pod_id in zip(stores, pod_ids, strict=True)]


@pytest.fixture
async def pod(redis_url: str) -> AsyncIterator[Pod]:
    """One that is alone."""
    async with pods(redis_url, "p-1") as [only]:
        yield only


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Pod]]:
    """Two that know each other."""
    async with pods(redis_url, "p-1", "p-2") as both:
        await acquaint(*both)
        yield both


async def acquaint(*some: Pod) -> None:
    for _ in range(2):
        for each in some:
            await each.counts.renew()


def keys_of(place: Place, keys: Keys = KEYS) -> list[str]:
    """Written out, and not taken from what is tested."""
    base = f"{keys.prefix}:{{{keys.callbacks(place.tenant_id)}}}:connections"
    users = [] if place.user_id is None else [f"{base}:user:{place.user_id}"]
    return [base, f"{base}:session:{place.session_id}", *users]


def noted(*some: Pod) -> Counts:
    """What Redis should hold."""
    counts: Counts = {}
    for each in some:
        for key, count in Counter(key for place in each.places for key in keys_of(place)).items():
            counts.setdefault(key, {})[each.id] = count
    return counts


def held(redis: Client) -> Counts:
    """What Redis holds."""
    keys = sorted(key.decode() for key in redis.keys("*:connections*"))
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        hashes = zip(keys, pipeline.execute(), strict=True)
    return {key: {pod.decode(): int(n) for pod, n in counts.items()} for key, counts in hashes}


def right(redis: Client, *some: Pod) -> bool:
    """Whether Redis holds what the pods have noted."""
    assert held(redis) == noted(*some)
    return True


def die(redis: Client, *some: Pod) -> None:
    """As after `kill -9`, when the lease has ended."""
    redis.zrem(KEYS.pod_leases, *[each.id for each in some])


def place(n: int, *, session: bool = True, user: bool = True) -> Place:
    """The n-th of places in one tenant, with sessions and users of their own or not."""
    return Place("acme", f"s-{n}" if session else "s-1", f"u-{n}" if user else "ana")


# Limits.


@pytest.mark.parametrize(
    ("most", "places", "full"),
    [
        (Most(25, 1, 1), [place(n) for n in range(100)], Full("tenant", 25)),
        (Most(100, 25, 1), [place(n, session=False) for n in range(100)], Full("session", 25)),
        (Most(100, 1, 25), [place(n, user=False) for n in range(100)], Full("user", 25)),
    ],
    ids=["tenant", "session", "user"],
)
async def test_exactly_as_many_as_allowed(
    pair: list[Pod], redis_client: Client, most: Most, places: list[Place], full: Full
) -> None:
    """However many come at the same time to however many pods; the others are told which limit it was."""
    answers = Counter[Full | None]()
    for start in range(0, 100, 20):
        joins = [pair[n % 2].join(places[n], most) for n in range(start, start + 20)]
        answers += Counter(await asyncio.gather(*joins))
    assert answers == {None: 25, full: 75}
    assert right(redis_client, *pair)
    assert min(len(each.places) for each in pair) > 0
    counts = await tenant_connections(cast("Store", pair[0].store), KEYS, "acme")
    assert counts == {each.id: len(each.places) for each in pair}


async def test_0_is_no_limit(pair: list[Pod], redis_client: Client) -> None:
    """Everybody is counted all the same."""
    answers = await asyncio.gather(*[pair[n % 2].join() for n in range(300)])
    assert set(answers) == {None}
    assert right(redis_client, *pair)


async def test_one_that_leaves_makes_room(pair: list[Pod], redis_client: Client) -> None:
    """At once: who leaves and comes again within one step finds its place; so does another elsewhere."""
    one, two = pair
    await one.join()
    one.leave()  # from now on Redis knows the script, and it is not sent twice
    await eventually(lambda: right(redis_client, *pair))
    assert await one.join(most=Most(1, 1, 1)) is None
    for _ in range(10):
        one.leave()
        assert await one.join(most=Most(1, 1, 1)) is None
    assert await two.join(most=Most(1, 1, 1)) == Full("tenant", 1)
    one.leave()
    await eventually(lambda: right(redis_client, *pair))
    assert await two.join(most=Most(1, 1, 1)) is None
    assert right(redis_client, *pair)


@pytest.mark.parametrize(
    ("most", "full"),
    [
        (Most(3, 0, 0), Full("tenant", 3)),
        (Most(0, 2, 0), Full("session", 2)),
        (Most(0, 0, 1), Full("user", 1)),
        (Most(3, 2, 1), Full("tenant", 3)),
        (Most(4, 2, 1), Full("session", 2)),
        (Most(4, 3, 1), Full("user", 1)),
        (Most(4, 3, 2), None),
    ],
)
async def test_a_refused_one_is_counted_nowhere(
    pair: list[Pod], redis_client: Client, most: Most, full: Full | None
) -> None:
    """Not with the session because the user had enough; of several limits the widest is named."""
    one, two = pair
    for each in (Place("acme", "s-1", "ana"), Place("acme", "s-1", "bob"), Place("acme", "s-2", None)):
        assert await one.join(each) is None
    before = held(redis_client)
    assert await two.join(most=most) == full
    assert right(redis_client, *pair)
    assert (held(redis_client) == before) == (full is not None)


async def test_others_are_not_touched(pair: list[Pod], redis_client: Client) -> None:
    """Neither another tenant's session or user of the same name, nor who has no user."""
    one, two = pair
    places = [
        Place(tenant, session, user)
        for tenant in ("acme", "acme.2")
        for session in ("s-1", "s-2")
        for user in ("ana", "s-1", None)
    ]
    for each in places:
        assert await one.join(each) is None
        assert await two.join(each, Most(12, 6, 4)) is None
        assert right(redis_client, *pair)
    for each in places:
        one.leave(each)
        await eventually(lambda: right(redis_client, *pair))
        assert await two.join(each, Most(12, 6, 4)) is None
        two.leave(each)
        two.leave(each)
        await eventually(lambda: right(redis_client, *pair))
    assert redis_client.keys() == [KEYS.pod_leases.encode()]


async def test_a_spread_tenant_is_one_tenant(redis_url: str, redis_client: Client) -> None:
    """Its sessions have several callback lists, and share the limit."""
    keys = Keys("ao", "dev", "q:{tier}", "orchestrator:{tenant_id}:callbacks", {"acme": 4})
    assert len({keys.callbacks_of("acme", f"s-{n}") for n in range(20)}) == 4
    async with pods(redis_url, "p-1", keys=keys) as [only]:
        answers = await asyncio.gather(*[only.join(place(n), Most(10, 1, 1)) for n in range(20)])
        assert answers.count(Full("tenant", 10)) == 10
        assert right(redis_client, only)


@pytest.mark.parametrize("written", ["1", "2", "02"])
async def test_a_tenants_own_limit(pod: Pod, redis_client: Client, written: str) -> None:
    """It counts in place of the tier's, whether it is less or more, from the next connection on."""
    most = int(written)
    redis_client.hset(LIMITS, "connections", written)
    for tier in (Most(1, 0, 0), Most(5, 0, 0)):
        redis_client.delete(*keys_of(PLACE))
        for n in range(most + 2):
            assert await pod.join(PLACE, tier) == (None if n < most else Full("tenant", most))
    redis_client.hset(LIMITS, "connections", most + 1)
    assert await pod.join(PLACE, Most(1, 0, 0)) is None
    redis_client.hdel(LIMITS, "connections")
    assert await pod.join(PLACE, Most(1, 0, 0)) == Full("tenant", 1)


@pytest.mark.parametrize("written", ["0", "00", "9" * 400])
async def test_a_tenant_without_a_limit_of_its_own(pod: Pod, redis_client: Client, written: str) -> None:
    """0 is unlimited there too; its sessions' and users' limits stay."""
    redis_client.hset(LIMITS, "connections", written)
    for n in range(5):
        assert await pod.join(place(n), Most(1, 1, 1)) is None
    assert await pod.join(place(0), Most(1, 1, 1)) == Full("session", 1)


@pytest.mark.parametrize("written", ["", "-1", "+3", "3.0", " 3", "3 ", "3\n", "0x3", "1e1", "xx", "\u0663"])
async def test_what_is_no_whole_number_limits_nothing(pod: Pod, redis_client: Client, written: str) -> None:
    """A slip of an operator leaves the tier's limit in force."""
    redis_client.hset(LIMITS, mapping={"connections": written, "sends_per_day": 1})
    assert await pod.join(most=Most(2, 0, 0)) is None
    assert await pod.join(most=Most(2, 0, 0)) is None
    assert await pod.join(most=Most(2, 0, 0)) == Full("tenant", 2)


# What is kept.


async def test_counts_expire_if_nobody_comes(pod: Pod, redis_client: Client) -> None:
    """What a pod left behind that nobody ever meets does not stay for ever; every join and rewrite renews."""

    def kept() -> bool:
        return all(KEPT_MS - 10_000 < redis_client.pttl(key) <= KEPT_MS for key in keys_of(PLACE))

    await pod.join()
    assert kept()
    for renewal in (pod.join, pod.rewrite):
        for key in keys_of(PLACE):
            redis_client.pexpire(key, 5_000)
        await renewal()
        assert kept()
    redis_client.delete(*keys_of(PLACE))
    await pod.rewrite()
    assert kept()


async def test_a_count_is_never_negative(pod: Pod, redis_client: Client) -> None:
    """A leave that finds nothing, or nonsense, leaves nothing; what is there stays right."""
    await pod.join()
    pod.counts.leave(PLACE)
    pod.leave()
    await eventually(lambda: right(redis_client, pod))
    assert redis_client.keys("*:connections*") == []
    for nonsense in (0, -3):
        for key in keys_of(PLACE):
            redis_client.hset(key, mapping={"p-1": nonsense, "p-2": 4})
        pod.counts.leave(PLACE)
        await eventually(lambda: held(redis_client) == {key: {"p-2": 4} for key in keys_of(PLACE)})


async def test_a_pod_keeps_nothing_for_an_idle_connection(pod: Pod) -> None:
    """Tens of thousands of them are idle."""

    def sizes() -> dict[str, int]:
        parts = vars(pod.counts).items()
        return {name: len(part) for name, part in parts if isinstance(part, dict | set | list | tuple)}

    await pod.counts.renew()
    before = sizes()
    assert len(before) >= 4
    await asyncio.gather(*[pod.join(place(n), Most(90, 0, 0)) for n in range(100)])
    for n in (3, 4, 5):
        with suppress(ValueError):  # it may be one that was refused
            pod.leave(place(n))
    await pod.rewrite()
    await eventually(lambda: sizes() == before)


async def test_leaving_needs_no_memory(pod: Pod, redis_client: Client) -> None:
    """A Redis that is full takes no new connection, and is told of each that goes."""
    for _ in range(3):
        await pod.join()
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisRefused, match="OOM"):
            await pod.join()
        for _ in range(2):
            await pod.counts.renew()
        assert pod.begun == 0  # a refused one was not counted, and there is nothing to set right
        for _ in range(3):
            pod.leave()
            await eventually(lambda: right(redis_client, pod))
    finally:
        redis_client.config_set("maxmemory", 0)


# Pods that come, and pods that die.


async def test_a_new_pod_counts_for_those_that_do_not_know_it(redis_url: str, redis_client: Client) -> None:
    """What is not in a pod's view is not dead: it looks again."""
    async with pods(redis_url, "p-1", "p-2") as [one, two]:
        await one.counts.renew()
        assert await two.join() is None
        assert one.counts.pods == {"p-1"}
        assert await one.join(most=Most(0, 1, 0)) == Full("session", 1)
        assert one.counts.pods == {"p-1", "p-2"}
        assert await one.join() is None
        assert right(redis_client, one, two)


async def test_a_killed_pods_places_are_free_when_its_lease_ends(
    redis_url: str, redis_client: Client
) -> None:
    """Not before, as it may only be slow; then its fields go wherever somebody joins."""
    async with pods(redis_url, "p-1", "p-2", lease_s=0.5) as [one, two], one.running():
        async with two.running():
            for _ in range(3):
                assert await two.join() is None
            assert await two.join(Place("acme", "s-2", None)) is None
            await eventually(lambda: one.counts.pods == two.counts.pods == {"p-1", "p-2"})
            assert await one.join(most=Most(4, 3, 3)) == Full("tenant", 4)
        ends_ms = redis_client.zscore(KEYS.pod_leases, "p-2")

        for _ in range(2_000):
            if await one.join(most=Most(4, 3, 3)) is None:
                break
            await asyncio.sleep(0.002)
        assert 0 <= now_ms(redis_client) - ends_ms < 1_000
        [tenant, session, user, other] = [*keys_of(PLACE), keys_of(Place("acme", "s-2", None))[1]]
        only = {"p-1": 1}
        assert held(redis_client) == {tenant: only, session: only, user: only, other: {"p-2": 1}}
        assert await one.join(Place("acme", "s-2", None)) is None
        assert right(redis_client, one)


async def test_a_refused_one_deletes_what_dead_pods_left(pair: list[Pod], redis_client: Client) -> None:
    """And is refused by what is alive alone."""
    one, two = pair
    await one.join()
    await two.join()
    die(redis_client, two)
    await one.counts.renew()
    assert await one.join(most=Most(2, 1, 0)) == Full("session", 1)
    assert right(redis_client, one)


async def test_nobody_is_refused_by_an_old_view(
    pair: list[Pod], redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed pod's places are free as soon as its lease has ended, not when the next renewal is due."""
    monkeypatch.setattr(connection_counts, "_STALE_S", 0.0)
    one, two = pair
    await two.join()
    assert await one.join(most=Most(1, 1, 1)) == Full("tenant", 1)
    die(redis_client, two)
    assert await one.join(most=Most(1, 1, 1)) is None
    assert right(redis_client, one)


async def test_many_are_refused_by_one_view(pair: list[Pod], redis_client: Client) -> None:
    """A crowd that is refused does not ask each for itself who lives."""
    one, two = pair
    await one.counts.renew()
    await two.join()
    leases = 0

    async def counted(script: Script, _args: list[Argument]) -> None:
        nonlocal leases
        leases += script is LEASE

    one.store.before = counted
    assert (
        await asyncio.gather(*[one.join(most=Most(1, 1, 1)) for _ in range(50)]) == [Full("tenant", 1)] * 50
    )

    assert leases == 0


async def test_names_that_begin_alike(redis_url: str, redis_client: Client) -> None:
    """A dead pod is not taken for a living one whose name contains its name, nor the other way round."""
    async with pods(redis_url, "p-1", "p-11", "p", "p-1-1") as [one, two, *dead]:
        await acquaint(one, two, *dead)
        for each in (two, *dead):
            await each.join()
        die(redis_client, *dead)
        await one.counts.renew()
        assert await one.join(most=Most(2, 2, 2)) is None
        assert right(redis_client, one, two)


async def test_one_that_comes_between_the_view_and_the_join(redis_url: str, redis_client: Client) -> None:
    """It is neither in the view nor dead, and must not be deleted with one that is."""
    async with pods(redis_url, "p-1", "p-2", "p-3", "p-4", "p-5") as [one, dead, *late]:
        await acquaint(one, dead)
        await dead.join()
        die(redis_client, dead)
        await one.counts.renew()
        joins, coming = 0, iter(late)

        async def before(script: Script, _args: list[Argument]) -> None:
            nonlocal joins
            joins += script is JOIN
            newcomer = next(coming, None) if script is JOIN and joins > 1 else None
            if newcomer is not None:
                await newcomer.counts.renew()
                for key in keys_of(PLACE):  # by hand: a join would see to the dead one
                    redis_client.hincrby(key, newcomer.id, 1)
                newcomer.places.append(PLACE)

        one.store.before = before
        assert await one.join(most=Most(4, 4, 4)) is None
        assert joins == 5  # for each that it met it looks again, and it does not forget whom it met before
        assert right(redis_client, one, *late)
        assert await one.join(most=Most(4, 4, 4)) == Full("tenant", 4)


async def test_a_view_that_comes_late_is_not_gone_by(redis_url: str, redis_client: Client) -> None:
    """Whoever was dead when it was taken may be alive by now. (A process that was stopped sees it so.)"""
    async with pods(redis_url, "p-1", "p-2", lease_s=0.3) as [one, two]:
        await acquaint(one, two)
        await two.join()
        die(redis_client, two)
        await one.counts.renew()
        views = 0

        async def behind(script: Script, _args: list[Argument]) -> None:
            nonlocal views
            if script is LEASE:
                views += 1
                await asyncio.sleep(0.15)

        one.store.behind = behind
        with pytest.raises(RedisUnavailable, match="too long"):
            await one.join()
        assert views == 1
        assert right(redis_client, two)


async def test_nothing_is_counted_without_a_lease(pod: Pod, redis_client: Client) -> None:
    """A pod that has not entered yet, or may have lost its lease, renews it before it joins or rewrites."""
    seen: list[Script] = []

    async def before(script: Script, _args: list[Argument]) -> None:
        seen.append(script)

    pod.store.before = before
    await pod.join()
    await pod.join()
    assert seen == [LEASE, JOIN, JOIN]
    assert redis_client.zscore(KEYS.pod_leases, "p-1") is not None
    seen.clear()
    await pod.rewrite()
    assert seen == [LEASE, LEAVE]


async def test_a_lease_that_has_ended_is_renewed_before_joining(redis_url: str, redis_client: Client) -> None:
    """A pod whose timers are late is not deleted for it."""
    async with pods(redis_url, "p-1", lease_s=0.1) as [only]:
        await only.join()
        ends_ms = redis_client.zscore(KEYS.pod_leases, "p-1")
        await eventually(lambda: now_ms(redis_client) > ends_ms + 10)
        await only.join()
        assert redis_client.zscore(KEYS.pod_leases, "p-1") > ends_ms


def now_ms(redis: Client) -> float:
    seconds, micros = redis.time()
    return float(seconds * 1000 + micros / 1000)


async def test_a_pod_that_was_taken_for_dead_enters_its_connections_again(
    pair: list[Pod], redis_client: Client
) -> None:
    """It was stopped for longer than its lease, and its fields were deleted."""
    one, two = pair
    for n in range(3):
        await one.join(place(n, user=False))
    die(redis_client, one)
    await two.counts.renew()
    await two.join(place(0, user=False), Most(1, 1, 1))
    assert held(redis_client)[KEYS.tenant_connections("acme")] == {"p-2": 1}
    await one.counts.renew()
    await eventually(lambda: right(redis_client, *pair))
    assert await two.join(place(0), Most(4, 0, 0)) == Full("tenant", 4)


async def test_it_does_so_twice(pair: list[Pod], redis_client: Client) -> None:
    """Because one that was told of its death may be about to delete what it writes; but not for ever."""
    one, two = pair
    await one.join()
    die(redis_client, one)
    await two.counts.renew()

    async def about_to_delete(script: Script, args: list[Argument]) -> None:
        if script is JOIN and args[-1] == " p-1 ":
            await one.counts.renew()
            await eventually(lambda: one.rewrites == 1)
            assert right(redis_client, one)

    two.store.before = about_to_delete
    await two.join()
    assert held(redis_client) == noted(two)
    for _ in range(3):
        await one.counts.renew()
        await eventually(lambda: one.rewrites == 2)
        assert right(redis_client, *pair)
    assert one.begun == 2


async def test_a_pod_that_leaves(pair: list[Pod], redis_client: Client) -> None:
    """Others delete what it counted at their next view; it enters no more, whatever still runs."""
    one, two = pair
    await one.join()
    async with two.running():
        await two.join()
        await two.counts.left()
        assert redis_client.zrange(KEYS.pod_leases, 0, -1) == [b"p-1"]
        await two.counts.renew()
        for late in (two.join, two.rewrite):
            with pytest.raises(RedisUnavailable, match="has left"):
                await late()
        assert redis_client.zrange(KEYS.pod_leases, 0, -1) == [b"p-1"]
    await one.counts.renew()
    assert one.counts.pods == {"p-1"}
    assert await one.join(most=Most(2, 2, 2)) is None
    assert right(redis_client, one)


async def test_renewing_goes_on(redis_url: str, redis_client: Client) -> None:
    """Also when Redis refuses it for a while, which is told."""
    async with pods(redis_url, "p-1", lease_s=0.3) as [only]:
        redis_client.set(KEYS.pod_leases, "something else")
        with capture_logs() as logs:
            async with only.running():
                await eventually(lambda: any(log["event"] == "pod_lease_refused" for log in logs))
                redis_client.delete(KEYS.pod_leases)
                await eventually(lambda: redis_client.zcard(KEYS.pod_leases))
                first = redis_client.zscore(KEYS.pod_leases, "p-1")
                await eventually(lambda: redis_client.zscore(KEYS.pod_leases, "p-1") > first + 300)
        assert {log["reason"].partition(" ")[0] for log in logs} == {"WRONGTYPE"}


# What is lost.


async def test_a_redis_that_lost_everything_is_told_again(pair: list[Pod], redis_client: Client) -> None:
    """Thousands of connections, of many tenants: by calling `rewrite`, or else by the next renewal."""
    one, two = pair
    many = [Place(f"t-{n % 7}", f"s-{n % 400}", f"u-{n % 900}") for n in range(1800)]
    many += [Place("big", f"s-{n}", None) for n in range(700)]
    await asyncio.gather(*[pair[n % 2].join(each) for n, each in enumerate(many)])
    assert right(redis_client, one, two)
    redis_client.flushall()
    await one.rewrite()
    assert right(redis_client, one)
    await two.counts.renew()
    await eventually(lambda: right(redis_client, one, two))
    redis_client.flushall()
    for each in pair:
        await each.counts.renew()
    await eventually(lambda: right(redis_client, one, two))


async def test_wrong_counts_are_set_right(pair: list[Pod], redis_client: Client) -> None:
    """Too many, too few, or none, whatever made them so; the other pod's stay as they are."""
    one, two = pair
    for n in range(4):
        await one.join(place(n, session=False))
        await two.join(place(n, user=False))
    for field, by in enumerate((2, -3, -9, 0)):
        for key in keys_of(place(field, session=False)):
            redis_client.hincrby(key, "p-1", by)
    seen: list[Script] = []

    async def before(script: Script, _args: list[Argument]) -> None:
        seen.append(script)

    one.store.before = before
    await one.rewrite()
    assert right(redis_client, one, two)
    assert seen == [LEASE, LEAVE, LEAVE]  # once to look, once to set right


@contextmanager
def away(server: Valkey) -> Iterator[None]:
    """Redis is gone, and comes again with what it had."""
    server.kill()
    yield
    server.restart()


@pytest.mark.parametrize("by_itself", [False, True], ids=["rewrite", "renewal"])
async def test_leaves_that_redis_does_not_hear(own_valkey: Valkey, by_itself: bool) -> None:
    """They are remembered, also through a rewrite that fails; where nothing is left, the field goes."""
    with own_valkey.client() as redis:
        async with pods(own_valkey.url, "p-1", "p-2", timeout_s=5) as [one, two]:
            await acquaint(one, two)
            for n in range(4):
                await one.join(place(n, user=False))
                await two.join(place(n, user=False))
            with away(own_valkey):
                await eventually(lambda: not one.store.up and not two.store.up)
                one.leave(place(0, user=False))
                for lost in (one.rewrite, one.join, two.join):
                    with pytest.raises(RedisUnavailable):
                        await lost()
                one.leave(place(1, user=False))
            await eventually(lambda: one.store.up and two.store.up)
            assert held(redis) != noted(one, two)
            await (one.counts.renew() if by_itself else one.rewrite())
            await eventually(lambda: right(redis, one, two))


async def test_a_join_waits_for_a_connection_that_is_being_made(redis_url: str) -> None:
    """Who comes back in the instant in which Redis does is let in, and not sent away."""
    store = open_store(parse_redis_url(redis_url), "late", timeout_s=5)
    only = Pod(store, "p-1", 30, KEYS)
    only.counts._leased_until = float("inf")
    joining = asyncio.create_task(only.join())
    await asyncio.sleep(0)
    assert not store.up
    async with running(store):
        assert await joining is None


async def test_joins_refused_for_want_of_redis_are_not_remembered(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away all the world tries again and again."""
    monkeypatch.setattr(connection_counts, "_RECONNECTING_S", 0.01)
    store = open_store(parse_redis_url(redis_url), "down", timeout_s=5)
    only = Pod(store, "p-1", 30, KEYS)
    only.counts._leased_until = float("inf")
    for n in range(10):
        with pytest.raises(RedisUnavailable, match="not connected"):
            await only.join(place(n))
    assert not only.counts._lost


async def test_a_join_whose_answer_is_lost(pod: Pod, redis_client: Client) -> None:
    """It was carried out, and nobody knows; the next rewrite, that is the next renewal, takes it off."""
    await pod.join()

    async def behind(script: Script, _args: list[Argument]) -> None:
        if script is JOIN:
            raise RedisUnavailable("connection to Redis lost")

    pod.store.behind = behind
    for each in (PLACE, Place("acme", "s-2", None), Place("other", "s-2", "bob")):
        with pytest.raises(RedisUnavailable, match="lost"):
            await pod.join(each)
    assert len(held(redis_client)) == 7
    await pod.counts.renew()
    await eventually(lambda: right(redis_client, pod))
    for _ in range(3):
        await pod.counts.renew()
    assert pod.begun == 1


async def test_a_rewrite_that_fails_is_made_up_for(pod: Pod, redis_client: Client) -> None:
    """What it was about to set right is not forgotten."""
    await pod.join()
    await pod.join(place(2))

    async def lose(script: Script, _args: list[Argument]) -> None:
        if script is LEAVE:
            raise RedisUnavailable("connection to Redis lost")

    pod.store.before = lose
    pod.leave()
    await eventually(lambda: pod.counts._lost)
    with pytest.raises(RedisUnavailable):
        await pod.rewrite()
    assert len(held(redis_client)) == 5
    pod.store.before = _at_once
    await pod.rewrite()
    assert right(redis_client, pod)


async def test_a_failed_rewrite_after_a_lost_lease_is_still_due(pod: Pod, redis_client: Client) -> None:
    """Two are due then, and one that failed is none of them."""
    await pod.join()
    redis_client.flushall()

    async def lose(script: Script, _args: list[Argument]) -> None:
        if script is LEAVE:
            raise RedisUnavailable("connection to Redis lost")

    pod.store.before = lose
    await pod.counts.renew()
    await eventually(lambda: pod.rewrites == 1)
    assert held(redis_client) == {}
    pod.store.before = _at_once
    for _ in range(2):
        rewrites = pod.rewrites
        await pod.counts.renew()
        await eventually(lambda: pod.rewrites > rewrites)  # noqa: B023 - it is over before the next
        assert right(redis_client, pod)
    for _ in range(3):
        await pod.counts.renew()
    assert pod.begun == 3


async def test_a_rewrite_does_not_hold_up_the_lease(pod: Pod, redis_client: Client) -> None:
    """It may take longer than a lease; and the next begins when it has ended."""
    await pod.join()
    redis_client.flushall()
    slow, go_on = asyncio.Event(), asyncio.Event()

    async def before(script: Script, _args: list[Argument]) -> None:
        if script is LEAVE:
            slow.set()
            await go_on.wait()

    pod.store.before = before
    await pod.counts.renew()
    await slow.wait()
    redis_client.flushall()
    for _ in range(3):
        await pod.counts.renew()
    assert pod.begun == 1
    assert redis_client.zscore(KEYS.pod_leases, "p-1") is not None
    go_on.set()
    await eventually(lambda: right(redis_client, pod))


async def test_a_mistake_in_a_rewrite_is_told(pod: Pod, redis_client: Client) -> None:
    """And does not end the renewals."""
    await pod.counts.renew()
    redis_client.flushall()
    pod.places = cast("list[Place]", ["no place"])
    with capture_logs() as logs:
        for _ in range(2):
            await pod.counts.renew()
            await eventually(lambda: any(log["event"] == "task_died" for log in logs))
            logs.clear()


async def test_without_a_callback_the_caller_rewrites(store: Store, redis_client: Client) -> None:
    """Nothing is called, and nothing is forgotten."""
    counts = ConnectionCounts(store, KEYS, "p-1", 30, get_logger())
    assert await counts.join(PLACE, UNLIMITED) is None
    redis_client.flushall()
    for _ in range(2):
        await counts.renew()
    await counts.rewrite([PLACE])
    assert held(redis_client) == {key: {"p-1": 1} for key in keys_of(PLACE)}


async def test_all_is_looked_over_now_and_then(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what nobody notices, and because keys expire; but not at each renewal."""
    for _ in range(2):
        await pod.counts.renew()
    assert pod.rewrites == 0
    monkeypatch.setattr("backplane.connection_counts._REVIEW_S", 0.0)
    await pod.rewrite()
    monkeypatch.undo()
    for _ in range(3):
        await pod.counts.renew()
        await eventually(lambda: pod.rewrites == 2)
    assert pod.begun == 2


# Rewriting while others join and leave.


async def test_what_is_on_its_way_is_counted_once(pod: Pod, redis_client: Client) -> None:
    """Joins and leaves that are sent and not answered when a rewrite begins, and those right behind it."""
    for _ in range(3):  # the first time scripts are sent twice
        for _ in range(4):
            await pod.join()
        for key in keys_of(PLACE):
            redis_client.hset(key, "p-1", 77)
        joining = [asyncio.create_task(pod.join()) for _ in range(2)]
        pod.leave()
        await asyncio.sleep(0)
        pod.leave()
        rewriting = asyncio.create_task(pod.rewrite())
        await asyncio.sleep(0)
        joining.append(asyncio.create_task(pod.join()))
        pod.leave()
        await asyncio.gather(rewriting, *joining)
        await eventually(lambda: right(redis_client, pod))
        pod.leave()
        await eventually(lambda: right(redis_client, pod))


async def test_one_that_has_joined_and_does_not_know_yet(pod: Pod, redis_client: Client) -> None:
    """It is in nobody's notes when the rewrite begins, and in Redis."""
    await pod.counts.renew()
    rewriting: list[asyncio.Task[None]] = []

    async def behind(script: Script, _args: list[Argument]) -> None:
        if script is JOIN:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: rewriting.append(loop.create_task(pod.counts.rewrite(list(pod.places)))))

    pod.store.behind = behind
    for _ in range(3):
        assert len(rewriting) == len(pod.places)
        await pod.join()
        await rewriting[-1]
        assert right(redis_client, pod)


async def test_a_leave_that_finds_nothing_to_take_off(pod: Pod, redis_client: Client) -> None:
    """Redis has lost the count, which is known already; the leave comes before it is put right."""
    await pod.join()
    await pod.join(Place("acme", "s-2", "ana"))
    redis_client.flushall()
    met = 0

    async def before(script: Script, args: list[Argument]) -> None:
        nonlocal met
        if script is LEAVE and -2 in args:
            pod.store.before = _at_once
            pod.leave()
            met += 1
            await eventually(lambda: not pod.counts._besides)  # it is answered

    pod.store.before = before
    await pod.rewrite()
    assert met == 1
    assert right(redis_client, pod)


async def test_two_rewrites_at_once(pod: Pod, redis_client: Client) -> None:
    """The second sees what has changed since it was asked for."""
    for n in range(40):
        await pod.join(place(n, user=False))
    redis_client.flushall()
    rewriting = [asyncio.create_task(pod.rewrite()) for _ in range(3)]
    await asyncio.sleep(0)
    for n in range(20):
        pod.leave(place(n, user=False))
    await asyncio.gather(*rewriting, pod.join(place(50)))
    await eventually(lambda: right(redis_client, pod))


async def test_places_left_twice_do_not_hold_up_a_rewrite(pod: Pod, redis_client: Client) -> None:
    """A caller's mistake costs a count, and not the pod."""
    await pod.join()
    rewriting = asyncio.create_task(pod.rewrite())
    await asyncio.sleep(0)
    pod.leave()
    pod.counts.leave(PLACE)
    pod.counts.leave(PLACE)
    await rewriting
    await eventually(lambda: right(redis_client, pod))


class Traffic:
    """Connections of a pod that come, and go, and are cancelled while they come."""

    def __init__(self, pod: Pod, seed: int) -> None:
        self._pod = pod
        self._choose = random.Random(seed)
        self._over = False
        self.answers = Counter[Full | str | None]()
        self.cancelled = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends when the connections that are about to come have come."""
        visitors = [asyncio.create_task(self._visit()) for _ in range(12)]
        try:
            yield
        finally:
            self._over = True
            await asyncio.gather(*visitors)

    async def _join(self, wanted: Place) -> Full | str | None:
        try:
            return await self._pod.join(wanted, Most(60, 15, 0))
        except RedisUnavailable:
            return "away"

    async def _visit(self) -> None:
        choose, pod = self._choose, self._pod
        mine: list[Place] = []
        while not self._over:
            wanted = Place("acme", f"s-{choose.randrange(6)}", choose.choice(("ana", "bob", None)))
            if mine and choose.random() < 0.5:
                pod.leave(mine.pop(choose.randrange(len(mine))))
            elif choose.random() < 0.2:
                joining = asyncio.create_task(self._join(wanted))
                for _ in range(choose.randrange(4)):
                    await asyncio.sleep(0)
                joining.cancel()
                with suppress(asyncio.CancelledError):
                    if await joining is None:  # it was quicker
                        mine.append(wanted)
                self.cancelled += joining.cancelled()
            else:
                full = await self._join(wanted)
                self.answers[full] += 1
                if full is None:
                    mine.append(wanted)
            if choose.random() < 0.1:
                await asyncio.sleep(0)


async def damage(redis: Client, pod: Pod, choose: random.Random) -> None:
    """Redis has forgotten some of a pod's counts, and has others from long ago; the pod rewrites them."""
    for key in redis.keys("*:connections*"):
        count = int(redis.hget(key, pod.id) or 0)
        if count and choose.random() < 0.3:
            redis.hdel(key, pod.id)
        elif count and choose.random() < 0.5:
            redis.hset(key, pod.id, max(count + choose.randrange(-3, 4), 1))
    await pod.rewrite()


@pytest.mark.parametrize("seed", range(4))
async def test_joins_and_leaves_go_on_while_counts_are_rewritten(
    pair: list[Pod], redis_client: Client, seed: int
) -> None:
    """Of both pods, with some that are cancelled; whatever was wrong before, in the end all is right."""
    choose = random.Random(seed)
    traffic = [Traffic(each, seed + n) for n, each in enumerate(pair)]
    async with traffic[0].running(), traffic[1].running():
        for _ in range(15):
            await asyncio.gather(*[damage(redis_client, each, choose) for each in pair])
    await eventually(lambda: right(redis_client, *pair))
    assert all(each.cancelled and each.answers[None] and len(each.answers) > 1 for each in traffic)


@pytest.mark.parametrize("seed", range(4))
async def test_redis_loses_everything_while_joins_and_leaves_go_on(
    pod: Pod, redis_client: Client, seed: int
) -> None:
    """Again and again; after the rewrite that follows the last loss all is right."""
    async with Traffic(pod, seed).running():
        for n in range(15):
            redis_client.flushall()
            if n % 3 == 0:
                redis_client.script_flush()
            await pod.rewrite()
    await eventually(lambda: right(redis_client, pod))


async def test_connections_are_lost_while_joins_and_leaves_go_on(pod: Pod, redis_client: Client) -> None:
    """Nobody knows what was carried out of what was on its way; after the rewrite all is right."""
    traffic = Traffic(pod, 0)
    async with traffic.running():
        for _ in range(15):
            connects = pod.store.connects
            [mine] = [c["id"] for c in redis_client.client_list() if c["name"] == "under-test"]
            redis_client.client_kill_filter(_id=mine)
            await eventually(lambda: pod.store.connects > connects and pod.store.up)  # noqa: B023 - at once
            await pod.rewrite()
    await eventually(lambda: right(redis_client, pod))
    assert traffic.answers["away"]


async def test_a_caller_that_goes_away_while_it_joins(pair: list[Pod], redis_client: Client) -> None:
    """Is not counted, and takes nobody's place off when it would have been refused."""
    one, two = pair
    assert await two.join() is None
    for most in (UNLIMITED, Most(0, 1, 0)):
        for steps in range(8):
            joining = asyncio.create_task(one.counts.join(PLACE, most))
            for _ in range(steps):
                await asyncio.sleep(0)
            joining.cancel()
            with suppress(asyncio.CancelledError):
                await joining
                one.counts.leave(PLACE)  # it was quicker
            await eventually(lambda: right(redis_client, *pair))
    assert await one.join(most=Most(2, 2, 2)) is None
    for each in pair:
        each.leave()
    await eventually(lambda: right(redis_client, *pair))


# A cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(tmp_path_factory.mktemp("cluster"), replicas=0) as running_cluster:
        yield running_cluster


async def test_on_a_cluster(cluster: ValkeyCluster) -> None:
    """A tenant is counted on one node, tenants on all of them; leases are on another than most."""
    tenants = [f"t-{n}" for n in range(12)]
    assert len({cluster.node_of(KEYS.tenant_connections(tenant)) for tenant in tenants}) == 3

    def everything() -> Counts:
        counts: Counts = {}
        for node, _ in cluster.primaries():
            with node.client() as client:
                counts |= held(client)
        return counts

    async with pods(cluster.url, "p-1", "p-2", "p-3", timeout_s=5) as [one, two, dead]:
        some = [Place(tenant, f"s-{n % 3}", "ana") for tenant in tenants for n in range(20)]
        answers = await asyncio.gather(
            *[(one, two, dead)[n % 3].join(each, Most(12, 0, 0)) for n, each in enumerate(some)]
        )
        assert Counter(answers) == {None: 12 * 12, Full("tenant", 12): 12 * 8}
        assert everything() == noted(one, two, dead)
        await dead.counts.left()
        await acquaint(one, two)
        for tenant in tenants:
            await one.join(Place(tenant, "s-0", None))
            await two.join(Place(tenant, "s-1", "ana"))
            await two.join(Place(tenant, "s-2", "ana"))
        assert everything() == noted(one, two)
        for each in one.places[::2]:
            one.leave(each)
        await eventually(lambda: everything() == noted(one, two))
        for node, _ in cluster.primaries():
            node.ask("FLUSHALL")
        await asyncio.gather(one.rewrite(), two.rewrite())
        assert everything() == noted(one, two)
