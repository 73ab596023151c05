"""Fixtures of all tests: one real Valkey, emptied before each test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.valkey import Client, Valkey


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The server that tests share; a test that kills its server starts one of its own."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """The shared server's address, with nothing in it."""
    with valkey.client() as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def redis_client(valkey: Valkey, redis_url: str) -> Iterator[Client]:
    """A client of the shared server, for looking from outside."""
    with valkey.client() as client:
        yield client
