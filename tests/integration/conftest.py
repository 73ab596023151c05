"""A link and a store on the shared server, and servers that a test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backplane.link import Link
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.store import Store
from tests.support.valkey import Valkey, running


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    async with running(Link(parse_redis_url(redis_url), "test", timeout_s=30)) as up:
        yield up


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """As a router's: it can watch lists."""
    target = parse_redis_url(redis_url)
    async with running(open_store(target, "test-store", timeout_s=30, on_connect=can_watch)) as up:
        yield up


async def can_watch(link: Link) -> None:
    """For `open_store`'s ``on_connect``: what watching needs."""
    await link.call("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own, whose writes survive ``kill -9``."""
    server = Valkey(tmp_path / "valkey", durable=True, unixsocket=str(tmp_path / "valkey.sock"))
    server.start()
    yield server
    server.thaw()
    server.kill()
