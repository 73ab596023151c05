"""The lookout: new lists are seen at once by the router whose turn it is, and by no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backplane.redis_client import parse_redis_url
from backplane.router.lookout import Lookout
from backplane.settings import Settings
from tests.support.topology import ValkeyCluster
from tests.support.valkey import Client, eventually

SETTINGS = Settings(sweep_interval_s=3_600)
KEYS = SETTINGS.keys()
NAME = "orchestrator-router-lookout"


class Seen:
    """What the lookout told of."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failures: list[str] = []

    def has(self, *tenants: str) -> bool:
        return {KEYS.callbacks(tenant) for tenant in tenants} <= set(self.names)


@asynccontextmanager
async def looking(url: str, settings: Settings = SETTINGS) -> AsyncIterator[tuple[Lookout, Seen]]:
    """A lookout that is off duty; its task may not have died by the end."""
    seen = Seen()
    lookout = Lookout(
        parse_redis_url(url),
        KEYS,
        settings,
        lambda names: seen.names.extend(name.decode() for name in names),
        seen.failures.append,
    )
    task = asyncio.create_task(lookout.run())
    try:
        yield lookout, seen
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def push(redis: Client, tenant: str) -> None:
    redis.lpush(KEYS.callbacks(tenant), "callback")


async def test_a_new_list_is_told_at_once(redis_url: str, redis_client: Client) -> None:
    """Each write to a callback list is seen, and nothing that is none."""
    async with looking(redis_url) as (lookout, seen):
        lookout.duty(on=True)
        await eventually(lambda: lookout.store.up)
        for tenant in ("a", "b", "c"):
            push(redis_client, tenant)
            redis_client.set(f"elsewhere:{tenant}", 1)
            await eventually(lambda tenant=tenant: seen.has(tenant), within_s=1)  # type: ignore[misc]
    assert set(seen.names) == {KEYS.callbacks(tenant) for tenant in "abc"}


async def test_a_storm_is_seen_whole(redis_url: str, redis_client: Client) -> None:
    """It listens at ease, and misses none."""
    async with looking(redis_url) as (lookout, seen):
        lookout.duty(on=True)
        await eventually(lambda: lookout.store.up)
        with redis_client.pipeline(transaction=False) as pipeline:
            for n in range(2_000):
                pipeline.lpush(KEYS.callbacks(f"t-{n}"), "callback")
            pipeline.execute()
        await eventually(lambda: seen.has(*[f"t-{n}" for n in range(2_000)]))


async def test_what_was_there_before_is_found(redis_url: str, redis_client: Client) -> None:
    """Lists that were written to while nobody looked out, among many other keys."""
    for n in range(30):
        push(redis_client, f"t-{n}")
    redis_client.mset({f"other:{n}": n for n in range(5_000)})
    async with looking(redis_url) as (lookout, seen):
        lookout.duty(on=True)
        await eventually(lambda: seen.has(*[f"t-{n}" for n in range(30)]))


async def test_only_on_duty(redis_url: str, redis_client: Client) -> None:
    """Off duty it has no connection, and costs Redis and itself nothing."""

    def connected() -> int:
        return sum(client["name"] == NAME for client in redis_client.client_list())

    async with looking(redis_url) as (lookout, seen):
        assert not lookout.on_duty
        await asyncio.sleep(0.1)
        push(redis_client, "before")
        assert connected() == 0
        for turn in range(3):
            lookout.duty(on=True)
            assert lookout.on_duty
            await eventually(lambda: connected() == 1)
            await eventually(lambda: seen.has("before"))
            push(redis_client, f"during-{turn}")
            await eventually(lambda turn=turn: seen.has(f"during-{turn}"), within_s=1)
            lookout.duty(on=False)
            await eventually(lambda: connected() == 0)
            seen.names.clear()
            push(redis_client, f"after-{turn}")
            await asyncio.sleep(0.1)
            assert seen.names == []


async def test_a_turn_that_ends_and_begins_at_once(redis_url: str, redis_client: Client) -> None:
    """Views of who is there may flicker; the last word counts."""
    async with looking(redis_url) as (lookout, seen):
        for on in (True, False, True, False, True):
            lookout.duty(on=on)
        await eventually(lambda: lookout.store.up)
        for on in (False, True):
            lookout.duty(on=on)
        push(redis_client, "a")
        await eventually(lambda: seen.has("a"), within_s=1)


async def test_a_lost_connection_is_made_anew_and_looks_again(redis_url: str, redis_client: Client) -> None:
    """What was written meanwhile nobody told of."""
    async with looking(redis_url) as (lookout, seen):
        lookout.duty(on=True)
        await eventually(lambda: lookout.store.up)
        [victim] = [client["id"] for client in redis_client.client_list() if client["name"] == NAME]
        with redis_client.pipeline(transaction=True) as together:
            together.client_kill_filter(_id=victim)
            together.lpush(KEYS.callbacks("meanwhile"), "callback")
            together.execute()
        await eventually(lambda: seen.has("meanwhile"), within_s=1)
        push(redis_client, "later")
        await eventually(lambda: seen.has("later"), within_s=1)


async def test_an_emptied_redis_is_looked_at_again(redis_url: str, redis_client: Client) -> None:
    """FLUSHALL may have hidden what came right before."""
    async with looking(redis_url) as (lookout, seen):
        lookout.duty(on=True)
        await eventually(lambda: lookout.store.up)
        await asyncio.sleep(0.05)
        redis_client.flushall()
        push(redis_client, "a")
        await eventually(lambda: seen.has("a"), within_s=1)


async def test_now_and_then_it_looks_unasked(redis_url: str, redis_client: Client) -> None:
    """For what no push told of."""
    async with looking(redis_url, replace(SETTINGS, sweep_interval_s=0.1)) as (lookout, seen):
        push(redis_client, "a")
        lookout.duty(on=True)
        await eventually(lambda: seen.names.count(KEYS.callbacks("a")) >= 3)


@pytest.fixture
def one_node(tmp_path: Path) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(tmp_path, primaries=1, replicas=0) as cluster:
        yield cluster


async def test_turn_after_turn_on_a_cluster(one_node: ValkeyCluster) -> None:
    """A router whose turn it is again connects to the nodes again."""
    async with looking(one_node.url) as (lookout, seen):
        for turn in range(3):
            lookout.duty(on=True)
            await eventually(lambda: lookout.store.up)
            one_node.nodes[0].ask("LPUSH", KEYS.callbacks(f"t-{turn}"), "callback")
            await eventually(lambda turn=turn: seen.has(f"t-{turn}"))  # type: ignore[misc]
            lookout.duty(on=False)
            await asyncio.sleep(0.1)
