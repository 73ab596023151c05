"""A link to the shared server, and servers that a test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backplane.link import Link
from backplane.redis_client import parse_redis_url
from tests.support.valkey import Valkey, running


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    async with running(Link(parse_redis_url(redis_url), "test", timeout_s=30)) as up:
        yield up


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own, whose writes survive ``kill -9``."""
    server = Valkey(tmp_path / "valkey", durable=True, unixsocket=str(tmp_path / "valkey.sock"))
    server.start()
    yield server
    server.thaw()
    server.kill()
