"""HTTP connections before their request is whole: how many there may be, how long, and how large."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol, HalfOpen, bounded_protocol
from tests.unit.gateway.fakes import FakeTransport, settle

# How many.


class Stub:
    """A connection, as far as it can be dropped."""

    def __init__(self) -> None:
        self.aborted = 0
        self.transport = SimpleNamespace(abort=self._abort)

    def _abort(self) -> None:
        self.aborted += 1

    def as_protocol(self) -> BoundedHttpProtocol:
        return cast("BoundedHttpProtocol", self)


def test_the_oldest_has_to_go() -> None:
    """One too many costs the one that has waited longest, and nobody else."""
    half_open, stubs = HalfOpen(3), [Stub() for _ in range(5)]
    for stub in stubs:
        half_open.add(stub.as_protocol())

    assert [stub.aborted for stub in stubs] == [1, 1, 0, 0, 0]
    assert len(half_open) == 3


def test_who_has_said_what_he_wants_stays() -> None:
    """A request that is whole is not among them, and makes room."""
    half_open, stubs = HalfOpen(2), [Stub() for _ in range(4)]
    half_open.add(stubs[0].as_protocol())
    half_open.discard(stubs[0].as_protocol())
    half_open.discard(stubs[0].as_protocol())
    for stub in stubs[1:]:
        half_open.add(stub.as_protocol())

    assert [stub.aborted for stub in stubs] == [0, 1, 0, 0]


def test_waiting_on_makes_nobody_younger() -> None:
    """Who is entered twice keeps his place."""
    half_open, stubs = HalfOpen(2), [Stub() for _ in range(3)]
    for number in (0, 1, 0, 2):
        half_open.add(stubs[number].as_protocol())

    assert [stub.aborted for stub in stubs] == [1, 0, 0]


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_never_more_than_allowed(most: int, deeds: list[tuple[bool, int]]) -> None:
    """Whoever comes and goes, the oldest of those that wait is the one that goes."""
    half_open, stubs = HalfOpen(most), [Stub() for _ in range(10)]
    waiting: list[int] = []
    for comes, number in deeds:
        before = [stub.aborted for stub in stubs]
        if comes:
            half_open.add(stubs[number].as_protocol())
            waiting += [] if number in waiting else [number]
        else:
            half_open.discard(stubs[number].as_protocol())
            waiting = [one for one in waiting if one != number]
        dropped = [n for n, stub in enumerate(stubs) if stub.aborted != before[n]]
        assert dropped == waiting[:-most]
        waiting = waiting[-most:]
        assert len(half_open) == len(waiting)


def test_each_server_counts_its_own() -> None:
    """Two ports of a pod do not push out each other's."""
    one, two = bounded_protocol(1.0, 5), bounded_protocol(2.0, 6)

    assert one.half_open is not two.half_open
    assert (one.head_timeout_s, two.head_timeout_s) == (1.0, 2.0)


# On a connection.


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers whatever it is asked."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Server:
    """A server's protocols, without its sockets."""

    def __init__(self, head_timeout_s: float = 60.0, half_open_max: int = 100) -> None:
        self.kind = bounded_protocol(head_timeout_s, half_open_max)
        self._config = uvicorn.Config(app, http=self.kind, lifespan="off", log_config=None, ws="none")
        self._state = ServerState()

    @property
    def waiting(self) -> int:
        return len(self.kind.half_open)

    def connect(self) -> tuple[BoundedHttpProtocol, FakeTransport]:
        protocol, transport = self.kind(self._config, self._state, {}), FakeTransport()
        protocol.connection_made(transport)
        return protocol, transport


class FakeSocket:
    """What takes a connection over that is no HTTP any more."""

    def connection_made(self, transport: Any) -> None:
        """Nothing is done with it."""

    def data_received(self, data: bytes) -> None:
        """Nor with its upgrade request."""


class Transport(FakeTransport):
    """One that changes hands."""

    def set_protocol(self, protocol: Any) -> None:
        """Only that of the socket is asked for anything from now on."""


UPGRADE = (
    b"GET /ws/s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_a_connection_that_says_nothing_waits() -> None:
    """Until its request is whole, byte by byte, and again once it is answered."""
    server = Server()
    protocol, transport = server.connect()
    assert server.waiting == 1
    for byte in WHOLE[:-1]:
        protocol.data_received(bytes((byte,)))
        assert server.waiting == 1
    protocol.data_received(WHOLE[-1:])
    assert server.waiting == 0
    await settle()

    assert transport.data.startswith(b"HTTP/1.1 200")
    assert server.waiting == 1
    protocol.connection_lost(None)


async def test_the_next_request_of_a_connection_waits_again() -> None:
    """While the connection is idle, too: it may be the first to go then."""
    server = Server()
    protocol, _transport = server.connect()
    for _ in range(3):
        protocol.data_received(WHOLE[:10])
        assert server.waiting == 1
        protocol.data_received(WHOLE[10:])
        assert server.waiting == 0
        await settle()
        assert server.waiting == 1
    protocol.connection_lost(None)


async def test_what_has_become_a_socket_is_freed_at_once() -> None:
    """Nothing of its HTTP stays for the garbage collector, which would look at it each time until then."""
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, ws=cast("Any", lambda **_more: FakeSocket())
    )
    protocol = bounded_protocol(60.0, 100)(config, ServerState(), {})
    gone = weakref.ref(protocol)
    gc.disable()
    try:
        protocol.connection_made(Transport())
        protocol.data_received(UPGRADE)
        del protocol
        await settle()

        assert gone() is None
    finally:
        gc.enable()


async def test_gone_is_not_waiting() -> None:
    """A client that hangs up makes room."""
    server = Server()
    protocol, _transport = server.connect()
    protocol.connection_lost(None)

    assert server.waiting == 0


async def test_who_opens_many_and_says_nothing() -> None:
    """Keeps nobody out who has something to say."""
    server = Server(half_open_max=3)
    silent = [server.connect() for _ in range(10)]
    assert [transport.aborted.is_set() for _protocol, transport in silent] == [True] * 7 + [False] * 3
    protocol, transport = server.connect()
    protocol.data_received(WHOLE)
    await settle()

    assert transport.data.startswith(b"HTTP/1.1 200")
    for one, _transport in (*silent, (protocol, transport)):
        one.connection_lost(None)
    assert server.waiting == 0


@pytest.mark.parametrize("sent", [b"", WHOLE[:-2]])
async def test_a_head_that_does_not_come(sent: bytes) -> None:
    """Is told so after its time, and does not wait any more."""
    server = Server(head_timeout_s=0.01)
    protocol, transport = server.connect()
    if sent:
        protocol.data_received(sent)
    async with asyncio.timeout(5):
        await transport.wrote.wait()

    assert transport.data.startswith(b"HTTP/1.1 408")
    assert b"did not come within 0.01 s" in transport.data
    assert transport.closing
    assert server.waiting == 0
    protocol.connection_lost(None)


@pytest.mark.parametrize(("size", "status"), [(MAX_HEAD_BYTES - 200, b"200"), (MAX_HEAD_BYTES + 1, b"431")])
@pytest.mark.parametrize("piece", [997, 1_000_000])
async def test_the_size_of_a_head(size: int, status: bytes, piece: int) -> None:
    """It may be so large, whether it comes at once or bit by bit."""
    server = Server()
    protocol, transport = server.connect()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * size + b"\r\n\r\n"
    for start in range(0, len(head), piece):
        if not transport.closing:
            protocol.data_received(head[start : start + piece])
    await settle()

    assert transport.data.startswith(b"HTTP/1.1 " + status)
    protocol.connection_lost(None)
