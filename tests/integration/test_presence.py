"""Who lives: heartbeats in Redis, and what happens without them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from backplane.errors import RedisUnavailable
from backplane.open_store import open_store
from backplane.presence import MISSED_BEATS, Presence, living
from backplane.redis_client import parse_redis_url
from backplane.settings import Settings
from backplane.store import Store
from tests.support.valkey import Client, eventually, running

KEYS = Settings().keys()


def unconnected(url: str) -> Store:
    """A store that connects when its `run` does."""
    return open_store(parse_redis_url(url), "under-test", timeout_s=5)


def presence(store: Store, member: str = "p-1", interval_s: float = 0.05, **more: Any) -> Presence:
    return Presence(store, KEYS, "pods", member, interval_s, lambda: {"name": member}, **more)


async def test_the_living_are_found_with_their_summaries(store: Store) -> None:
    """Each process is seen by all others, by its kind."""
    await presence(store, "p-1").beat()
    await presence(store, "p-2").beat()
    assert await living(store, KEYS, "pods") == {"p-1": {"name": "p-1"}, "p-2": {"name": "p-2"}}
    assert await living(store, KEYS, "routers") == {}


async def test_one_that_leaves_is_gone_at_once(store: Store, redis_client: Client) -> None:
    """A clean stop waits for no timeout, and nothing of it stays."""
    redis_client.hset("its connections", "c", "1")
    member = presence(store, renew=("its connections",))
    await member.beat()
    await member.leave()
    assert await living(store, KEYS, "pods") == {}
    assert redis_client.keys() == []


async def test_one_that_falls_silent_is_dead(store: Store, redis_client: Client) -> None:
    """After the missed beats it is out of the summaries, and forgotten by whoever looks."""
    member = presence(store)
    await member.beat()
    assert 0 < redis_client.pttl(KEYS.member("pods", "p-1")) <= 50 * MISSED_BEATS
    await eventually(lambda: not redis_client.exists(KEYS.member("pods", "p-1")))
    assert await living(store, KEYS, "pods") == {}
    assert not redis_client.exists(KEYS.members("pods"))


async def test_one_that_beats_stays(store: Store, redis_client: Client) -> None:
    """Its summary and what it renews outlive many intervals."""
    redis_client.set("its connections", "1")
    member = presence(store, interval_s=0.1, renew=("its connections",))
    task = asyncio.create_task(member.run())
    await eventually(lambda: redis_client.pttl("its connections") > 0)
    await asyncio.sleep(member.ttl_ms / 1000 * 2)
    assert list(await living(store, KEYS, "pods")) == ["p-1"]
    assert redis_client.exists("its connections")
    task.cancel()


async def test_it_waits_for_redis(redis_url: str, redis_client: Client) -> None:
    """A process that starts before its Redis beats as soon as it can, and does not die of it."""
    store = unconnected(redis_url)
    task = asyncio.create_task(presence(store).run())
    await asyncio.sleep(0)
    async with running(store):
        await eventually(lambda: redis_client.exists(KEYS.member("pods", "p-1")))
        task.cancel()


async def test_it_goes_on_after_redis_was_away(redis_url: str, redis_client: Client) -> None:
    """A lost connection costs a beat, not the heartbeat."""
    store = unconnected(redis_url)
    async with running(store):
        task = asyncio.create_task(presence(store).run())
        for _ in range(3):
            await eventually(lambda: redis_client.exists(KEYS.member("pods", "p-1")))
            [victim] = [c["id"] for c in redis_client.client_list() if c["name"] == "under-test"]
            redis_client.client_kill_filter(_id=victim)
            redis_client.delete(KEYS.member("pods", "p-1"))
        await eventually(lambda: redis_client.exists(KEYS.member("pods", "p-1")))
        assert not task.done()
        task.cancel()


async def test_a_refused_beat_is_not_repeated_in_a_circle(store: Store, redis_client: Client) -> None:
    """A Redis that refuses (memory, a replica) is asked again at the next beat, not thousands of times."""
    redis_client.set(KEYS.members("pods"), "something else")
    redis_client.config_resetstat()
    task = asyncio.create_task(presence(store).run())
    await eventually(lambda: calls(redis_client, "sadd") >= 2)
    begun = calls(redis_client, "sadd")
    await asyncio.sleep(0.2)
    assert calls(redis_client, "sadd") - begun <= 6
    redis_client.delete(KEYS.members("pods"))
    await eventually(lambda: redis_client.exists(KEYS.members("pods")))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def calls(redis: Client, command: str) -> int:
    stats: dict[str, Any] = redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(stats["calls"])


async def test_without_redis_nobody_is_known(redis_url: str) -> None:
    """The caller is told, instead of an empty cluster."""
    store = unconnected(redis_url)
    with pytest.raises(RedisUnavailable):
        await living(store, KEYS, "pods")
