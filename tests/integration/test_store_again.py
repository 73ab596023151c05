"""A store whose `run` was cancelled runs again: a router is the lookout now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from tests.support.topology import ValkeyCluster
from tests.support.valkey import eventually


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ValkeyCluster(tmp_path_factory.mktemp("again"), replicas=0) as cluster:
        yield cluster.url


async def runs_three_times(url: str) -> None:
    store = open_store(parse_redis_url(url), "again", timeout_s=5)
    for number in range(3):
        task = asyncio.create_task(store.run())
        await eventually(lambda: store.up)
        for name in ("a", "b", "c", "d", "e"):
            await store.call("SET", f"again:{name}", str(number))
            assert await store.call("GET", f"again:{name}") == str(number).encode()
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not store.up
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_single_servers_store_runs_again(redis_url: str) -> None:
    """Connected, stopped and connected again, and nothing is left running."""
    await runs_three_times(redis_url)


async def test_a_clusters_store_runs_again(cluster_url: str) -> None:
    """The links of the time before are not taken for dead ones."""
    await runs_three_times(cluster_url)
