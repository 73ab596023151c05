"""One event stream: what is kept until it has its transport, what is written, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from backplane.session_log import Resumed
from gateway.close_codes import CloseCode
from gateway.event_framing import NATIVE, Encoded, EventFraming
from gateway.event_start import EventStart
from gateway.event_stream import EventStream
from gateway.events_endpoint import EventsEndpoint, events_routes
from gateway.http import exception_handlers
from gateway.http_protocol import BoundedHttpProtocol, bounded_protocol
from gateway.identity import ANYONE, Identity
from gateway.listener import State
from gateway.pod import Pod as RealPod
from tests.unit.gateway.fakes import SESSION, FakeTransport, settle
from tests.unit.gateway.sockets import Pod
from tests.unit.gateway.test_event_framing import StubEncoder, unchunked

IDENTITY = Identity("acme", "free", "s-1", None, None, ANYONE)
LAST_CHUNK = b"0\r\n\r\n"


class Transport(FakeTransport):
    """One that changes hands."""

    def set_protocol(self, protocol: Any) -> None:
        """Who has it now is told by the test."""


class Wire:
    """A stream, its pod, and the transport that it will have."""

    def __init__(self, pod: Pod, *, chunked: bool = True) -> None:
        self.pod = pod
        self.transport = FakeTransport()
        self.stream = EventStream(pod.sockets, "127.0.0.1", chunked=chunked)

    async def attach(self, framing: EventFraming = NATIVE) -> None:
        """Up to where the head of the answer would be sent."""

        def accept(_resumed: Resumed) -> bool:
            self.stream.framing = framing
            self.stream.state = State.OPEN
            return True

        await self.pod.opening.knock(self.stream, None)
        self.stream.identity = IDENTITY
        self.stream.connection_id = "c-1"
        await self.pod.opening.join(self.stream, IDENTITY)
        await self.pod.opening.attach(self.stream, IDENTITY, None, accept)

    def hand_over(self) -> None:
        self.stream.connection_made(self.transport)

    @property
    def body(self) -> str:
        """What is in its chunks."""
        return unchunked(self.transport.data)[0].decode()

    @property
    def messages(self) -> list[dict[str, Any]]:
        lines = self.body.split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    @property
    def seqs(self) -> list[int]:
        return [m["metadata"]["seq"] for m in self.messages if "seq" in m["metadata"]]


@pytest.fixture
def pod() -> Pod:
    return Pod(auth_grace_s=1, slow_consumer_timeout_s=0.01, send_buffer_bytes=16_384)


@pytest.fixture
async def wire(pod: Pod) -> AsyncIterator[Wire]:
    """Open, with its transport."""
    one = Wire(pod)
    await one.attach()
    one.hand_over()
    yield one
    if one.stream.state != State.CLOSED:
        one.stream.connection_lost(None)


async def test_what_is_said_before_it_has_its_transport(pod: Pod) -> None:
    """Is kept, in order: the greeting, what was missed, what comes live."""
    pod.say(2)
    one = Wire(pod)
    await one.attach()
    pod.say(1)
    assert one.transport.data == b""
    one.hand_over()

    assert one.messages[0]["type"] == "connection_ack"
    assert one.seqs == [1, 2, 3]
    assert one.transport.high == 16_384
    pod.say(1)
    assert one.seqs == [1, 2, 3, 4]


async def test_what_is_kept_is_bounded(pod: Pod) -> None:
    """What is beyond a buffer's size is read from the log when it has its transport."""
    one = Wire(pod)
    await one.attach()
    for _ in range(10):
        batch = pod.log.append(1, size=5_000)
        pod.hub.on_push(
            [b"message", b"ao:{orchestrator:acme:callbacks}:s:s-1",
             b"\n".join([f"{batch.epoch}:{batch.first}".encode(), *batch.entries])]
        )  # fmt: skip
    assert one.stream.behind
    one.hand_over()
    await settle()

    assert len(one.transport.written[0]) < 16_384 + 6_000
    assert one.seqs == list(range(1, 11))


async def test_one_that_comes_to_nothing(pod: Pod) -> None:
    """Before it has its transport it can be given up, and nothing is left of it."""
    one = Wire(pod)
    await one.attach()
    assert (len(pod.sockets.wheel), pod.hub.sessions, len(pod.counts.places)) == (1, 1, 1)
    one.stream.abandon()
    one.stream.abandon()

    assert (len(pod.sockets.wheel), pod.hub.sessions, len(pod.counts.places)) == (0, 0, 0)
    assert pod.ownership.owned == {}


async def test_one_that_has_its_transport_is_not_abandoned(wire: Wire) -> None:
    """That is only for what comes before."""
    wire.stream.abandon()

    assert wire.stream.state == State.OPEN


async def test_one_that_is_ended_before_it_has_its_transport(pod: Pod) -> None:
    """Is told so as soon as it has."""
    one = Wire(pod)
    await one.attach()
    await pod.sockets.retire_where(lambda _identity, _connection: True, "move")
    await settle()
    one.hand_over()

    assert [message["type"] for message in one.messages] == ["connection_ack", "reconnect"]
    assert one.transport.data.endswith(LAST_CHUNK)
    assert one.transport.closing


async def test_heartbeats(wire: Wire) -> None:
    """A comment, and nothing to a client that takes no more."""
    for _ in range(64):
        wire.pod.sockets.wheel.turn()
    assert wire.body.count(": \n\n") == 2
    assert len(wire.pod.sockets.wheel) == 1


async def test_a_client_that_does_not_read(wire: Wire) -> None:
    """It is sent nothing more, and dropped after a while; what it lacks stays in the log."""
    wire.stream.pause_writing()
    wire.pod.say(3)
    wire.stream.beat()
    assert wire.seqs == []
    async with asyncio.timeout(5):
        await wire.transport.aborted.wait()

    assert not wire.transport.data.endswith(LAST_CHUNK)
    assert wire.pod.sockets.closed_by_code == {4001: 1}
    assert wire.pod.hub.sessions == 0


async def test_a_client_that_reads_again() -> None:
    """In time: it gets what it lacks."""
    pod = Pod(slow_consumer_timeout_s=60)
    one = Wire(pod)
    await one.attach()
    one.hand_over()
    one.stream.pause_writing()
    pod.say(3)
    one.stream.resume_writing()
    await settle()

    assert one.seqs == [1, 2, 3]


async def test_what_the_client_says_is_not_read(wire: Wire) -> None:
    """It has nothing to say."""
    wire.stream.data_received(b"GET / HTTP/1.1\r\n")

    assert not wire.transport.reading
    assert wire.stream.state == State.OPEN


async def test_what_was_sent_is_noted(wire: Wire) -> None:
    """As for a socket: what has left the process."""
    wire.pod.say(2)
    wire.transport.buffered = 1
    assert wire.stream.sent is None
    assert wire.stream.busy
    wire.transport.buffered = 0
    await wire.pod.hub.marks.flush()

    assert wire.pod.log.record().sent == 2


async def test_a_part_of_the_session_is_not_noted(wire: Wire) -> None:
    """Who is told of one task only has not been sent what came of the others."""
    wire.stream.marks = False
    wire.pod.say(2)
    await wire.pod.hub.marks.flush()

    assert wire.stream.sent == 0
    assert not wire.stream.busy
    assert wire.pod.log.record().sent == 0


# Ends.


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        (CloseCode.RESTART, False),
        (CloseCode.TRY_LATER, False),
        (CloseCode.BAD_TOKEN, False),
        (CloseCode.FORBIDDEN, True),
        (CloseCode.REPLACED, True),
    ],
)
async def test_our_own_ends(wire: Wire, code: CloseCode, retry: bool) -> None:
    """Whole, whatever the reason; who shall not come back is told to wait."""
    wire.stream.close(code, "")
    wire.stream.close(code, "")
    wire.pod.say(1)

    assert wire.transport.data.endswith(LAST_CHUNK)
    assert ("retry: 86400000" in wire.body) == retry
    assert wire.transport.closing
    assert wire.pod.sockets.closed_by_code == {code: 1}
    assert wire.seqs == []


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("comes_back", [True, False])
async def test_others_ends(pod: Pod, chunked: bool, comes_back: bool) -> None:
    """Who shall come back sees the connection break; without chunks only a reset shows that."""
    one = Wire(pod, chunked=chunked)
    await one.attach(Encoded(StubEncoder(), chunked=chunked))
    one.hand_over()
    one.stream.close(CloseCode.RESTART if comes_back else CloseCode.FORBIDDEN, "")

    assert one.transport.closing
    assert (b"the end" in one.transport.data) == (not comes_back)
    assert one.transport.data.endswith(LAST_CHUNK) == (chunked and not comes_back)
    assert one.transport.aborted.is_set() == (comes_back and not chunked)


async def test_when_all_is_told(pod: Pod) -> None:
    """The stream ends by itself, also where that was so before it had its transport."""
    early, late = Wire(pod), Wire(pod)
    done = StubEncoder()
    done.done = True
    await early.attach(Encoded(done, chunked=True))
    encoder = StubEncoder()
    await late.attach(Encoded(encoder, chunked=True))
    for one in (early, late):
        one.hand_over()
    await settle()
    assert early.transport.data.endswith(LAST_CHUNK)
    assert late.stream.state == State.OPEN
    encoder.done = True
    pod.say(1)
    await settle()

    assert late.transport.data.endswith(LAST_CHUNK)
    assert pod.sockets.closed_by_code == {1000: 2}
    assert pod.hub.sessions == 0


@pytest.mark.parametrize("early", [True, False])
async def test_the_end_of_much(pod: Pod, early: bool) -> None:
    """The end is written although the transport, or what is kept for it, is full of what stands before it."""
    one, encoder = Wire(pod), StubEncoder()
    await one.attach(Encoded(encoder, chunked=True))
    if not early:
        one.hand_over()
        one.stream.pause_writing()
    else:
        one.stream.write(b"4\r\n: \n\n\r\n" * 2_000)
        assert not one.stream.writable
    encoder.done = True
    one.stream.write(b"")
    await settle()
    if early:
        one.hand_over()

    assert one.transport.data.endswith(b"data: the end\n\n\r\n" + LAST_CHUNK)
    assert one.transport.closing
    assert not one.transport.aborted.is_set()


async def test_a_client_that_does_not_read_the_end(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not waited for for ever."""
    monkeypatch.setattr("gateway.event_stream._LAST_WORDS_S", 0.001)
    wire.stream.close(CloseCode.RESTART, "")
    async with asyncio.timeout(5):
        await wire.transport.aborted.wait()


async def test_replaced(wire: Wire) -> None:
    """It is told by an error, as there are no close codes."""
    wire.stream.replaced()

    assert wire.messages[-1]["data"]["error_code"] == "replaced"
    assert wire.pod.sockets.closed_by_code == {4003: 1}


# From the request on.


class Server:
    """A pod's HTTP side, with its event streams."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        start = EventStart(pod.log.as_log(), pod.tasks.as_tasks(), pod.sender, pod.desk)
        whole = SimpleNamespace(event_streams=EventsEndpoint(pod.sockets, pod.opening, start))
        app = Starlette(
            routes=events_routes(cast("RealPod", whole)), exception_handlers=exception_handlers(pod.refused)
        )
        kind = bounded_protocol(60.0, 100)
        self._config = uvicorn.Config(app, http=kind, lifespan="off", log_config=None, ws="none")
        self._kind = kind
        self.state = ServerState()

    def connect(self) -> tuple[BoundedHttpProtocol, Transport]:
        protocol, transport = self._kind(self._config, self.state, {}), Transport()
        protocol.connection_made(transport)
        return protocol, transport


WHO = "tenant_id=acme&tenant_tier=free"


def asked(query: str = WHO, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} /api/chat/sessions/s-1/events?{query} HTTP/{version}", "Host: pod.test", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_request(pod: Pod) -> None:
    """Is answered by a head and an endless body; uvicorn has nothing more to do with it."""
    server = Server(pod)
    protocol, transport = server.connect()
    pod.say(1)
    protocol.data_received(asked())
    await settle()

    head, _, body = transport.data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 200 ok"
    assert {"content-type: text/event-stream", "transfer-encoding: chunked"} <= set(lines)
    assert {"cache-control: no-cache", "x-accel-buffering: no"} <= set(lines)
    assert not any(line.startswith(("connection:", "content-length:")) for line in lines)
    assert b'"connection_ack"' in body
    assert b"id: e1:1" in body
    assert not transport.closing
    assert server.state.connections == set()
    assert server.state.tasks == set()
    assert len(pod.sockets.wheel) == 1


async def test_a_request_of_old(pod: Pod) -> None:
    """HTTP/1.0 has no chunks: the body is as it is."""
    protocol, transport = Server(pod).connect()
    protocol.data_received(asked(version="1.0"))
    await settle()

    head, _, body = transport.data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.startswith(b"retry: ")


async def test_nothing_of_http_is_left(pod: Pod) -> None:
    """An open stream holds its transport and its place, and no request, task or parser."""
    protocol, _transport = Server(pod).connect()
    gone = weakref.ref(protocol)
    gc.disable()
    try:
        protocol.data_received(asked())
        del protocol
        await settle()
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (asked(""), 400),
        (asked(f"{WHO}&cursor=what"), 400),
        (asked(WHO, "Last-Event-ID: what"), 400),
        (asked(f"{WHO}&cursor=a:1&last_event_id=a:2"), 400),
        (asked(WHO, "X-Tenant-ID: other"), 400),
        (asked(f"{WHO}&format=morse"), 400),
        (asked(f"{WHO}&format=ag-ui&task_id=none"), 404),
        (asked(method="HEAD"), 405),
        (asked(WHO, "Content-Length: 0", method="POST"), 405),
        (asked(f"{WHO}&format=ai-sdk"), 204),
    ],
)
async def test_refusals(pod: Pod, request_bytes: bytes, status: int) -> None:
    """They are ordinary answers on a connection that goes on, and count nothing."""
    protocol, transport = Server(pod).connect()
    protocol.data_received(request_bytes)
    await settle()

    assert transport.data.startswith(f"HTTP/1.1 {status} ".encode()), transport.data
    assert not transport.closing
    assert (len(pod.sockets.wheel), pod.hub.sessions, len(pod.counts.places)) == (0, 0, 0)
    protocol.connection_lost(None)


async def test_another_users_session_in_which_nothing_runs(pod: Pod) -> None:
    """Whether something runs there is not told either."""
    pod.say(1)
    pod.log.records[SESSION].owner = "somebody"
    protocol, transport = Server(pod).connect()
    protocol.data_received(asked(f"{WHO}&format=ai-sdk"))
    await settle()

    assert transport.data.startswith(b"HTTP/1.1 403 "), transport.data
    assert b'"session_taken"' in transport.data
    protocol.connection_lost(None)


async def test_a_client_that_goes_while_it_is_judged(pod: Pod) -> None:
    """Nothing stays."""
    protocol, transport = Server(pod).connect()
    pod.log.gated = True
    protocol.data_received(asked())
    await settle()
    transport.close()
    protocol.connection_lost(None)
    pod.log.release()
    await settle()

    assert (len(pod.sockets.wheel), pod.hub.sessions, len(pod.counts.places)) == (0, 0, 0)


async def test_the_header_is_newer_than_the_address(pod: Pod) -> None:
    """An EventSource that comes back asks for the address of the beginning."""
    pod.say(5)
    protocol, transport = Server(pod).connect()
    protocol.data_received(asked(f"{WHO}&cursor=e1:1", "Last-Event-ID: e1:4"))
    await settle()

    assert transport.data.count(b'"type":"t"') == 1


async def test_redis_goes_away(pod: Pod) -> None:
    """While it is being opened: to be tried again."""
    from backplane.errors import RedisUnavailable

    pod.log.refusal = RedisUnavailable("away")
    protocol, transport = Server(pod).connect()
    protocol.data_received(asked())
    await settle()

    assert transport.data.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in transport.data
    assert len(pod.counts.places) == 0
    protocol.connection_lost(None)
