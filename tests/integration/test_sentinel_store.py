"""A store on a real Sentinel set: it follows the primary, through its death and through failovers by command.

What real Sentinels cannot be made to say at will (an old answer, a replica's address, nothing at all), a fake
one says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import hiredis
import pytest

from backplane.errors import RedisUnavailable
from backplane.link import Link
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.sentinel import Sentinels
from backplane.slots import Address
from backplane.store import Store
from tests.support.topology import HOST, SentinelSet, Server
from tests.support.valkey import eventually, running

TIMEOUT_S = 3.0
USER, PASSWORD = "gate", "pa:ss w@rd/é"


@pytest.fixture(scope="module")
def running_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    """Started once for all tests of this file; its data servers let in one user."""
    with SentinelSet(tmp_path_factory.mktemp("sentinel"), user=USER, password=PASSWORD) as sentinel_set:
        yield sentinel_set


@pytest.fixture
def servers(running_set: SentinelSet) -> SentinelSet:
    """The set, whole and empty, whatever the test before did to it."""
    for server in (*running_set.servers, *running_set.sentinels):
        server.launch()
        server.thaw()
        server.wait_answers()
    for sentinel in running_set.sentinels:  # one that was started again is slow to learn
        sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 100, "INFO-PERIOD", 500)
    running_set.wait_healthy()
    for sentinel in running_set.sentinels:
        sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 2000, "INFO-PERIOD", 10_000)
    running_set.primary().ask("FLUSHALL")
    return running_set


class Told:
    """A store as pods have it, and what it was told."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.channels: list[str] = []
        self.messages: list[bytes] = []
        self.changes: list[tuple[int, bool]] = []
        self.failures: list[str] = []
        self.store: Store = open_store(
            parse_redis_url(url),
            "under-test",
            timeout_s=timeout_s,
            on_push=self._on_push,
            channels=lambda: self.channels,
            on_change=self._on_change,
            on_failure=self.failures.append,
        )

    @property
    def port(self) -> int:
        """Of the server that it is connected to."""
        return self.store.links[0].address.port

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"message":
            self.messages.append(push[2])

    def _on_change(self, link: Link, up: bool) -> None:
        self.changes.append((link.address.port, up))


@asynccontextmanager
async def told(url: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Told]:
    """Its store is up when the body begins."""
    client = Told(url, timeout_s)
    async with running(client.store):
        yield client


class FakeSentinel:
    """Says what it is told to; an async context manager.

    Args:
        primary: whom it names; None: nobody, as it never answers.
        epoch: of the configuration that it knows.
    """

    def __init__(self, primary: Server | None, epoch: int) -> None:
        self.primary = primary
        self.epoch = epoch
        self.asked = 0

    async def __aenter__(self) -> FakeSentinel:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader(notEnoughData=None)
        with suppress(OSError):
            while data := await reader.read(65_536):
                commands.feed(data)
                while command := commands.gets():
                    self.asked += command[:2] == [b"SENTINEL", b"MASTER"]
                    if self.primary is not None:
                        writer.write(self._answer(command, self.primary))
        writer.close()

    def _answer(self, command: list[bytes], primary: Server) -> bytes:
        where = {"ip": HOST, "port": str(primary.port)}
        if command[0] == b"HELLO":
            return b"%1\r\n+proto\r\n:3\r\n"
        if command[1] == b"GET-MASTER-ADDR-BY-NAME":
            return b"*2\r\n" + b"".join(map(bulk, where.values()))
        assert command[1] == b"MASTER", command
        facts = {**where, "config-epoch": str(self.epoch)}
        return b"%3\r\n" + b"".join(bulk(part) for fact in facts.items() for part in fact)


def bulk(text: str) -> bytes:
    """As Redis sends it."""
    return f"${len(text)}\r\n{text}\r\n".encode()


def among(sentinels: SentinelSet, *others: FakeSentinel) -> str:
    """The set's address, with fakes in front of its own sentinels."""
    first = sentinels.sentinels[0].address
    return sentinels.url.replace(first, ",".join([*(fake.address for fake in others), first]))


# Following the primary.


async def test_the_primary_is_found_and_used(servers: SentinelSet) -> None:
    """With the user and the password of the address, which have all kinds of characters."""
    async with told(servers.url) as client:
        assert client.port == servers.primary().port
        assert await client.store.call("ACL", "WHOAMI") == USER.encode()
        assert await client.store.call("SET", "key", "value") == b"OK"
        assert servers.primary().ask("GET", "key") == b"value"


async def test_a_wrong_password_is_told(servers: SentinelSet) -> None:
    """It says so, and goes on trying."""
    url = servers.url.replace("gate:", "gate:not-")
    client = Told(url)
    task = asyncio.create_task(client.store.run())
    await eventually(lambda: client.failures)
    assert "WRONGPASS" in client.failures[0]
    assert "WRONGPASS" in client.store.last_error
    assert "not-" not in client.failures[0]
    assert not client.store.up
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_killed_primary_is_left_for_its_successor(servers: SentinelSet) -> None:
    """At once, with data and subscriptions, and also while another replica cannot follow the new primary yet.

    The Sentinel that carries the failover out waits for that replica, and until then tells the new epoch with
    the old primary's address, if asked in the wrong way. Each Sentinel stands first in one store's address.
    """
    laggard, old = servers.replicas()[0], servers.primary()
    laggard.ask("CONFIG", "SET", "replica-priority", 0)  # it is not to be the successor
    laggard.ask("CONFIG", "SET", "primaryauth", "wrong")
    hosts = [sentinel.address for sentinel in servers.sentinels]
    urls = [servers.url.replace(",".join(hosts), ",".join(hosts[n:] + hosts[:n])) for n in range(3)]
    try:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(told(url)) for url in urls]
            for client in clients:
                client.channels.append("channel")
                client.store.subscribe(client.channels)
            await clients[0].store.call("SET", "key", "value")
            assert old.ask("WAIT", 2, 5000) == 2
            old.kill()
            await eventually(lambda: not any(client.store.up for client in clients))
            took = await asyncio.to_thread(servers.wait_failed_over, old)
            behind = time.monotonic()
            await eventually(lambda: all(client.store.up for client in clients), 12)
            print(f"\nreplaced after {took:.2f} s, all connected {time.monotonic() - behind:.3f} s later")
            assert time.monotonic() - behind < 1.0
            new = servers.primary()
            assert {await client.store.call("GET", "key") for client in clients} == {b"value"}
            new.ask("PUBLISH", "channel", "again")
            await asyncio.sleep(2.5)  # they ask the Sentinels again, and have no reason to leave
            assert [client.messages for client in clients] == [[b"again"]] * 3
            changes = [(old.port, True), (old.port, False), (new.port, True)]
            assert [client.changes for client in clients] == [changes] * 3
    finally:
        laggard.ask("CONFIG", "SET", "primaryauth", PASSWORD)
        laggard.ask("CONFIG", "SET", "replica-priority", 100)


async def test_a_failover_by_command_is_followed(servers: SentinelSet) -> None:
    """The old primary lives on as a replica, and nobody stays with it."""
    async with told(servers.url) as client:
        old = servers.failover()
        took = await asyncio.to_thread(servers.wait_failed_over, old)
        behind = time.monotonic()
        await eventually(lambda: client.store.up and client.port == servers.primary().port)
        print(f"\nreplaced after {took:.2f} s, connected {time.monotonic() - behind:.3f} s later")
        assert time.monotonic() - behind < 2.5
        assert await client.store.call("SET", "key", "value") == b"OK"
        assert servers.primary().ask("GET", "key") == b"value"


async def test_a_frozen_primary_is_left_when_it_was_replaced(servers: SentinelSet) -> None:
    """Its connection stays open and says nothing; long before the timeout the Sentinels name another."""
    async with told(servers.url, timeout_s=30) as client:
        old = servers.primary()
        old.freeze()
        lost = client.store.call("GET", "key")
        took = await asyncio.to_thread(servers.wait_failed_over, old)
        behind = time.monotonic()
        with pytest.raises(RedisUnavailable, match="Sentinel names"):
            await asyncio.wait_for(lost, 5)
        await client.store.wait_for("key")
        print(f"\nreplaced after {took:.2f} s, connected {time.monotonic() - behind:.2f} s later")
        assert time.monotonic() - behind < 3.0
        assert await client.store.call("SET", "key", "value") == b"OK"
        assert client.port == servers.primary().port != old.port


# Whom to believe.


async def test_some_sentinels_are_down(servers: SentinelSet) -> None:
    """One that still answers is enough."""
    for sentinel in servers.sentinels[:2]:
        sentinel.kill()
    async with told(servers.url) as client:
        assert client.port == servers.primary().port


@pytest.mark.parametrize("timeout_s", [TIMEOUT_S, 0.8])
async def test_a_sentinel_that_never_answers(servers: SentinelSet, timeout_s: float) -> None:
    """Its machine is gone, and nobody says so: the others are believed, however short the patience is."""
    async with FakeSentinel(None, 0) as silent:
        began = time.monotonic()
        async with told(among(servers, silent), timeout_s) as client:
            print(f"\nconnected after {time.monotonic() - began:.2f} s")
            assert silent.asked
            assert client.port == servers.primary().port


async def test_no_sentinel_answers(servers: SentinelSet) -> None:
    """Each one's reason is told, once; and when they are back, all is well."""
    for sentinel in servers.sentinels:
        sentinel.kill()
    client = Told(servers.url)
    task = asyncio.create_task(client.store.run())
    await eventually(lambda: client.failures)
    assert "no sentinel names a primary for 'orchestrator'" in client.failures[0]
    assert all(sentinel.address in client.failures[0] for sentinel in servers.sentinels)
    await asyncio.sleep(0.5)
    assert len(client.failures) == 1
    for sentinel in servers.sentinels:
        await asyncio.to_thread(sentinel.start)
    await eventually(lambda: client.store.up)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_an_unknown_service_is_told(servers: SentinelSet) -> None:
    """With its name, as that is most often a slip of the pen."""
    client = Told(servers.url.replace("/orchestrator", "/orchestra"))
    task = asyncio.create_task(client.store.run())
    await eventually(lambda: client.failures)
    assert "'orchestra'" in client.failures[0]
    assert "No such master" in client.failures[0]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_an_older_configuration_is_outvoted(servers: SentinelSet) -> None:
    """A sentinel that was cut off still names the primary of before, wherever it stands in the address."""
    replica = servers.replicas()[0]
    async with FakeSentinel(replica, -1) as old, FakeSentinel(replica, 0) as older:
        sentinels = Sentinels(parse_redis_url(among(servers, old, older)), "test")
        for _ in range(5):
            assert await sentinels.primary() == Address(HOST, servers.primary().port)
        assert old.asked == older.asked == 5
        newer = replica
        old.epoch = 1_000
        assert await sentinels.primary() == Address(HOST, newer.port)


async def test_a_replica_is_never_used(servers: SentinelSet) -> None:
    """Whoever names it: it is refused, told, and used as soon as it is a primary."""
    replica, primary = servers.replicas()[0], servers.primary()
    async with FakeSentinel(replica, 1_000) as wrong:
        client = Told(among(servers, wrong))
        task = asyncio.create_task(client.store.run())
        await eventually(lambda: client.failures)
        assert f"{replica.address} is a replica" in client.failures[0]
        await asyncio.sleep(0.3)
        assert not client.store.up
        assert client.changes == []
        with pytest.raises(RedisUnavailable):
            await client.store.call("SET", "key", "value")
        wrong.primary = primary
        await eventually(lambda: client.store.up)
        assert client.port == primary.port
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_sentinels_own_user(servers: SentinelSet) -> None:
    """Sentinels may have users of their own; a wrong password there is told too."""
    for sentinel in servers.sentinels:
        sentinel.ask("ACL", "SETUSER", "looker", "on", ">se:cret", "&*", "+@all", "~*")
    url = f"{servers.url}?sentinel_username=looker&sentinel_password="
    async with told(f"{url}se%3Acret") as client:
        assert client.port == servers.primary().port
    with pytest.raises(RedisUnavailable, match="WRONGPASS"):
        await Sentinels(parse_redis_url(f"{url}wrong"), "test").primary()


async def test_a_cancelled_store_leaves_nothing_behind(servers: SentinelSet) -> None:
    """No task and no connection, also while it looks for a primary."""
    before = asyncio.all_tasks()
    async with told(servers.url):
        pass
    async with FakeSentinel(None, 0) as silent:
        client = Told(among(servers, silent))
        task = asyncio.create_task(client.store.run())
        await eventually(lambda: silent.asked)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await eventually(lambda: asyncio.all_tasks() == before)
    for server in (*servers.servers, *servers.sentinels):
        await eventually(lambda at=server: b"under-test" not in at.ask("CLIENT", "LIST"))  # type: ignore[misc]
