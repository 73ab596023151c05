"""Leases in a real Redis: who comes and who goes is known to all, by Redis's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from backplane.errors import RedisUnavailable
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.router.leases import Leases
from backplane.settings import Settings
from backplane.store import Store
from tests.support.valkey import Client, Valkey, eventually, running

KEYS = Settings().keys()
LEASE_S = 0.5
RENEWAL_S = LEASE_S / 5


class Router:
    """A router, as far as its lease goes."""

    def __init__(self, store: Store, router_id: str, lease_s: float = LEASE_S) -> None:
        self.views: list[set[str]] = []
        self.leases = Leases(store, KEYS, router_id, lease_s, lambda: self.views.append(self.view))

    @property
    def view(self) -> set[str]:
        return set(self.leases.routers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Router]:
        """Renewing; it ends without a goodbye."""
        task = asyncio.create_task(self.leases.run())
        try:
            yield self
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_all_learn_of_each_other(store: Store) -> None:
    """Within a renewal, and each change is told once."""
    one, two = Router(store, "r-1"), Router(store, "r-2")
    assert one.view == {"r-1"}
    assert one.leases.mine(b"whatever")
    async with one.running(), two.running():
        await eventually(lambda: one.view == two.view == {"r-1", "r-2"})
        await asyncio.sleep(3 * RENEWAL_S)
    assert one.views == [{"r-1", "r-2"}]
    assert two.views == [{"r-1", "r-2"}]
    names = [f"list-{n}".encode() for n in range(50)]
    assert all(one.leases.mine(name) != two.leases.mine(name) for name in names)


async def test_one_that_dies_is_gone_when_its_lease_ends(store: Store) -> None:
    """Not before, as it may only be slow; and then at the others' next renewal."""
    one = Router(store, "r-1")
    async with one.running():
        async with Router(store, "r-2").running():
            await eventually(lambda: one.view == {"r-1", "r-2"})
            await asyncio.sleep(LEASE_S)
            assert one.view == {"r-1", "r-2"}
        died = time.monotonic()
        await eventually(lambda: one.view == {"r-1"})
        assert LEASE_S - RENEWAL_S - 0.1 < time.monotonic() - died < LEASE_S + RENEWAL_S + 0.2


async def test_one_that_leaves_is_gone_at_the_next_renewal(store: Store, redis_client: Client) -> None:
    """A clean stop waits for no lease to end, and leaves nothing behind."""
    one, two = Router(store, "r-1", 30), Router(store, "r-2", 30)
    await one.leases.renew()
    await two.leases.renew()
    await one.leases.renew()
    assert one.view == two.view == {"r-1", "r-2"}
    await two.leases.leave()
    await one.leases.renew()
    assert one.view == {"r-1"}
    await one.leases.leave()
    assert redis_client.keys() == []


async def test_one_that_has_left_stays_away(store: Store, redis_client: Client) -> None:
    """A renewal that comes behind the goodbye would have the others wait for its lease to end."""
    one = Router(store, "r-1")
    async with one.running():
        await eventually(lambda: redis_client.zcard(KEYS.leases) == 1)
        await one.leases.leave()
        await asyncio.sleep(3 * RENEWAL_S)
        assert redis_client.zcard(KEYS.leases) == 0


async def test_a_goodbye_that_redis_does_not_hear(redis_url: str) -> None:
    """Is told, so that nobody takes it for said."""
    store = open_store(parse_redis_url(redis_url), "down", timeout_s=5)
    with pytest.raises(RedisUnavailable):
        await Router(store, "r-1").leases.leave()


async def test_one_that_slept_comes_back(store: Store) -> None:
    """Its lists went to the others, and it gets its share again."""
    one, two = Router(store, "r-1"), Router(store, "r-2")
    async with one.running():
        async with two.running():
            await eventually(lambda: one.view == {"r-1", "r-2"})
        await eventually(lambda: one.view == {"r-1"})
        async with two.running():
            await eventually(lambda: one.view == two.view == {"r-1", "r-2"})
    assert one.views == [{"r-1", "r-2"}, {"r-1"}, {"r-1", "r-2"}]


async def test_it_counts_on_itself_whatever_redis_says(store: Store, redis_client: Client) -> None:
    """A router that is running serves its lists, also when somebody struck it out."""
    one = Router(store, "r-1")
    await one.leases.renew()
    redis_client.delete(KEYS.leases)
    assert one.view == {"r-1"}
    await one.leases.renew()
    assert redis_client.zrange(KEYS.leases, 0, -1) == [b"r-1"]


async def test_the_clock_is_the_servers(store: Store, redis_client: Client) -> None:
    """Leases end when Redis says, so routers whose clocks differ agree."""
    await Router(store, "r-1", 20).leases.renew()
    seconds, micros = redis_client.time()
    [(_, ends_ms)] = redis_client.zrange(KEYS.leases, 0, -1, withscores=True)
    assert 19_000 < ends_ms - (seconds * 1000 + micros / 1000) <= 20_000


async def test_a_redis_that_is_away_ends_nothing(own_valkey: Valkey) -> None:
    """A router keeps its view, which does no harm, and renews as soon as it can."""
    target = parse_redis_url(own_valkey.url)
    async with running(open_store(target, "under-test", timeout_s=5)) as store:
        one = Router(store, "r-1")
        async with one.running(), Router(store, "r-2").running():
            await eventually(lambda: one.view == {"r-1", "r-2"})
            await asyncio.to_thread(own_valkey.kill)
            await asyncio.sleep(2 * LEASE_S)
            assert one.view == {"r-1", "r-2"}
            await asyncio.to_thread(own_valkey.restart)
            with own_valkey.client() as client:
                await eventually(lambda: client.zcard(KEYS.leases) == 2)
            await eventually(lambda: one.view == {"r-1", "r-2"})  # the other's lease had ended meanwhile
