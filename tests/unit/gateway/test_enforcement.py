"""What was decided elsewhere, carried out here: revoked tokens, and connections that have to go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from backplane.errors import RedisUnavailable
from backplane.revocations import Kind, Revocation
from backplane.scripts import REVOCATIONS
from gateway import control
from gateway.control import CloseOrder
from gateway.enforcement import Enforcement
from gateway.errors import ClientError
from gateway.identity import ANYONE, Grant
from tests.unit.gateway.fakes import FakeStore, settle
from tests.unit.gateway.sockets import SECRET, Client, Pod

NOW = 1_000.0


def revocation(kind: Kind, name: str = "", before: float = NOW, tenant: str = "acme") -> Revocation:
    return Revocation(kind, tenant, name, before, int(time.time()) + 86_400)


def grant(
    token_id: str | None = None, user: str | None = None, at: float = NOW, tenant: str = "acme"
) -> Grant:
    return Grant(tenant, "free", user, None, None, frozenset(), token_id, at, None)


class World:
    """A pod with sockets, and what Redis says of revocations."""

    def __init__(self) -> None:
        self.pod = Pod(auth="jwt", jwt_secret=SECRET)
        self.store = FakeStore()
        self.keys = self.pod.settings.keys()
        self.tasks: set[asyncio.Task[None]] = set()
        self.enforcement = Enforcement(
            self.store.as_store(),
            self.keys,
            lambda: self.pod.sockets,
            self._spawn,
            self.pod.logger.as_logger(),
        )
        self.pod.revoked = self.enforcement.revoked
        self.version = 0
        self.revoked: dict[str, Revocation] = {}
        self.store.replies[REVOCATIONS] = self._all

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        return task

    def _all(self, _lineage: str, _changes: int) -> list[Any]:
        entries = [
            (what.encode(), f"{entry.issued_before:.3f} {entry.until}".encode())
            for what, entry in self.revoked.items()
        ]
        return [b"one", self.version, 1, *[part for pair in entries for part in pair]]

    def revoke(self, *entries: Revocation) -> None:
        """As another pod does it; this one has yet to hear of it."""
        self.version += 1
        self.revoked |= {entry.what: entry for entry in entries}

    async def read(self) -> None:
        await self.enforcement.revocations.read()
        await settle()

    async def open(self, session: str = "s-1", **token: Any) -> Client:
        return await self.pod.open(f"token={self.pod.token(**token)}", session)

    def order(self, **which: Any) -> None:
        """Published to all pods."""
        payload = control.encode(CloseOrder(**which))
        assert self.enforcement.heard(self.keys.control_channel.encode(), payload)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)


def told(client: Client) -> tuple[str, list[int]]:
    """The last error's code, and the close codes."""
    errors = [message["data"]["error_code"] for message in client.messages if message["type"] == "error"]
    return (errors or [""])[-1], client.close_codes


# Which tokens count no more.


@pytest.mark.parametrize(
    ("entry", "one", "hit"),
    [
        (revocation("token", "t-1"), grant("t-1"), True),
        (revocation("token", "t-1"), grant("t-1", at=NOW + 99), True),
        (revocation("token", "t-1"), grant("t-2"), False),
        (revocation("token", "t-1"), grant(None), False),
        (revocation("token", "t-1"), grant("t-1", tenant="other"), False),
        (revocation("token", "ann"), grant(user="ann"), False),
        (revocation("user", "ann"), grant(user="ann"), True),
        (revocation("user", "ann"), grant(user="ann", at=NOW - 1), True),
        (revocation("user", "ann"), grant(user="ann", at=NOW + 0.5), False),
        (revocation("user", "ann"), grant(user="ann", at=0.0), True),
        (revocation("user", "ann"), grant(user="bob"), False),
        (revocation("user", "ann"), grant(user=None), False),
        (revocation("user", "None"), grant(user=None), False),
        (revocation("token", "None"), grant(None), False),
        (revocation("user", "ann"), grant("ann"), False),
        (revocation("user", "ann"), grant(user="ann", tenant="other"), False),
        (revocation("tenant"), grant(), True),
        (revocation("tenant"), grant("t-1", "ann"), True),
        (revocation("tenant"), grant(at=NOW + 1), False),
        (revocation("tenant"), grant(tenant="other"), False),
    ],
)
async def test_what_a_revocation_hits(world: World, entry: Revocation, one: Grant, hit: bool) -> None:
    """One token, or all of a user or tenant that were issued up to then; nothing of another tenant."""
    world.revoke(entry)
    await world.read()

    assert world.enforcement.revoked(one) is hit


async def test_one_revocation_does_not_hide_another(world: World) -> None:
    """A user's newer token may still be revoked by itself, or with the tenant."""
    world.revoke(
        revocation("user", "ann", NOW - 100), revocation("tenant", before=NOW), revocation("token", "t-9")
    )
    await world.read()

    assert world.enforcement.revoked(grant(user="ann"))
    assert world.enforcement.revoked(grant("t-9", "ann", NOW + 50))
    assert not world.enforcement.revoked(grant("t-8", "ann", NOW + 50))


async def test_before_they_were_read(world: World) -> None:
    """Nobody is let in while nobody knows, and it is not said to be the token's fault."""
    with pytest.raises(ClientError) as caught:
        world.enforcement.revoked(grant())
    assert (caught.value.status, caught.value.error_code) == (503, "redis_unavailable")
    world.store.up = False
    with pytest.raises(RedisUnavailable):
        await world.read()
    with pytest.raises(ClientError):
        world.enforcement.revoked(grant())
    world.store.up = True
    await world.read()

    assert not world.enforcement.revoked(grant())


async def test_while_redis_is_away(world: World) -> None:
    """What is known stays in force, and clients can still come."""
    world.revoke(revocation("token", "t-1"))
    await world.read()
    world.store.up = False
    with pytest.raises(RedisUnavailable):
        await world.read()

    assert world.enforcement.revoked(grant("t-1"))
    assert not world.enforcement.revoked(grant("t-2"))


async def test_without_tokens_nothing_is_revoked(world: World) -> None:
    """AUTH=none has no tokens."""
    world.revoke(revocation("tenant"))
    await world.read()

    assert not world.enforcement.revoked(ANYONE)


async def test_operators_tokens(world: World) -> None:
    """They are of no tenant, and so of none that is revoked."""
    world.revoke(revocation("tenant"))
    await world.read()

    assert not world.enforcement.revoked(grant(tenant="*"))


# Open sockets.


async def test_open_sockets_of_revoked_tokens(world: World) -> None:
    """They are told why, and closed for good; the others notice nothing."""
    await world.read()
    ann, bob = await world.open(user_id="ann"), await world.open("s-2", user_id="bob")
    other = await world.open("s-3", user_id="ann", tenant_id="other")
    world.revoke(revocation("user", "ann", before=4e9))
    await world.read()

    assert told(ann) == ("token_revoked", [4501])
    assert told(bob) == told(other) == ("", [])
    assert world.pod.logger.events == [("info", "tokens_revoked", {"revocations": 1, "sockets": 1})]
    assert world.pod.refused == {"token_revoked": 1}


async def test_each_revocation_is_carried_out_once(world: World) -> None:
    """Reading them again closes nobody, nor those who have come with newer tokens."""
    world.revoke(revocation("user", "ann"))
    await world.read()
    ann = await world.open(user_id="ann")
    for _ in range(3):
        await world.read()

    assert told(ann) == ("", [])


async def test_a_revocation_that_was_published(world: World) -> None:
    """It is read at once, not with the next look."""
    running = asyncio.create_task(world.enforcement.revocations.run())
    await settle()
    ann = await world.open(user_id="ann")
    world.revoke(revocation("tenant", before=4e9))
    asked = len(world.store.called)
    await settle()
    assert len(world.store.called) == asked
    assert world.enforcement.heard(world.keys.revocation_channel.encode(), b"1")
    await settle()

    assert told(ann) == ("token_revoked", [4501])
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_who_comes_with_a_revoked_token(world: World) -> None:
    """Is told so over the socket that it asked for."""
    world.revoke(revocation("tenant", before=4e9))
    await world.read()
    client = world.pod.asks(f"/ws/s-1?token={world.pod.token()}")
    await settle()

    assert client.told == ("token_revoked", [4501])


async def test_a_token_that_is_revoked_while_its_socket_opens(world: World) -> None:
    """It was right when it came, and opens nothing: an order to close reaches no socket that is not open."""
    await world.read()
    world.pod.log.gated = True
    client = world.pod.asks(f"/ws/s-1?token={world.pod.token()}")
    await settle()
    world.revoke(revocation("tenant", before=4e9))
    await world.read()
    world.pod.log.release()
    await settle()

    assert client.told == ("token_revoked", [4501])
    assert (world.pod.sockets.opened, world.pod.hub.sessions) == (0, 0)


async def test_it_lives_on_without_redis(world: World) -> None:
    """A pod that starts before its Redis, or loses it, keeps asking, and knows as soon as it can."""
    world.store.up = False
    running = asyncio.create_task(world.enforcement.revocations.run())
    await settle()
    assert not running.done()
    assert not world.enforcement.revocations.loaded
    world.store.up = True
    world.enforcement.revocations.look()
    await settle()
    assert world.enforcement.revocations.loaded
    world.store.up = False
    world.enforcement.revocations.look()
    await settle()

    assert not running.done()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


# Orders.


@pytest.mark.parametrize(
    ("which", "closed"),
    [
        ({"tenant_id": "acme"}, [True, True, False]),
        ({"session_id": "s-1"}, [True, False, True]),
        ({"user_id": "bob"}, [False, True, False]),
        ({"tenant_id": "acme", "user_id": "ann"}, [True, False, False]),
        ({"tenant_id": "nobody"}, [False, False, False]),
    ],
    ids=str,
)
async def test_orders_to_close(world: World, which: dict[str, str], closed: list[bool]) -> None:
    """Those that are meant are asked to come back, and closed with a code that says so."""
    await world.read()
    clients = [
        await world.open("s-1", user_id="ann"),
        await world.open("s-2", user_id="bob"),
        await world.open("s-1", user_id="ann", tenant_id="other"),
    ]
    world.order(**which, reason="we move")
    await settle()

    assert [client.close_codes for client in clients] == [[1012] if gone else [] for gone in closed]
    for client, gone in zip(clients, closed, strict=True):
        assert (client.messages[-1]["type"] == "reconnect") is gone
        assert not gone or client.messages[-1]["data"]["reason"] == "we move"
    log = ("info", "connections_closed", {"sockets": sum(closed), "reconnect": True})
    assert world.pod.logger.events == [log]


async def test_one_connection(world: World) -> None:
    """By its own id, of all that a session has."""
    await world.read()
    one, two = await world.open(), await world.open()
    world.order(connection_id=one.connection.connection_id)
    await settle()

    assert (one.close_codes, two.close_codes) == ([1012], [])


async def test_orders_to_stay_away(world: World) -> None:
    """Without an invitation to come back, in the administrator's words."""
    await world.read()
    client = await world.open()
    world.order(tenant_id="acme", reconnect=False, reason="you have not paid")
    await settle()

    assert told(client) == ("closed_by_admin", [4503])
    assert client.messages[-1]["data"]["error"] == "you have not paid"
    assert client.messages[-1]["data"]["retryable"] is False


@pytest.mark.parametrize("payload", [b"", b"hello", b"[]", b'{"tenant_id":5}'])
async def test_what_is_no_order(world: World, payload: bytes) -> None:
    """It is noted, and nobody is closed."""
    await world.read()
    client = await world.open()
    assert world.enforcement.heard(world.keys.control_channel.encode(), payload)
    await settle()

    assert client.close_codes == []
    assert world.pod.logger.names == ["foreign_publish"]


@pytest.mark.parametrize("channel", ["ao:{probe:p-1:0}", "ao:{control}x", "ao", ""])
async def test_what_is_for_somebody_else(world: World, channel: str) -> None:
    """Is left to them."""
    assert not world.enforcement.heard(channel.encode(), control.encode(CloseOrder(tenant_id="acme")))
    assert world.tasks == set()


async def test_the_channels_that_it_needs(world: World) -> None:
    """A pod subscribes to both."""
    assert set(world.enforcement.channels) == {world.keys.control_channel, world.keys.revocation_channel}
