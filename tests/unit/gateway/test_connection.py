"""A socket's bytes, timers and states, over a transport that a test holds in its hands."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from backplane.settings import Settings
from gateway import connection as connection_module
from gateway.connection import Connection
from gateway.feed import Feed
from gateway.frames import Binary, FrameDecoder, TooLarge
from gateway.identity import ANYONE, Identity
from gateway.listener import State
from gateway.websocket_endpoint import WebSocketEndpoint
from tests.unit.gateway.fakes import FakeTransport, close_codes, masked, settle, split_frames

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
IDENTITY = Identity("acme", "free", "s-1", None, None, ANYONE)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
HEAD = b"GET /ws/s-1 HTTP/1.1\r\n\r\n"


class StubHub:
    """Remembers what it is told, and what the connection said of itself at that moment."""

    def __init__(self) -> None:
        self.detached: list[int | None] = []
        self.noting: asyncio.Task[None] | None = None
        self.resumptions = 0
        self.acks = 0

    def detach(self, feed: Feed, connection: Connection) -> asyncio.Task[None] | None:
        self.detached.append(connection.sent)
        return self.noting

    def resumed(self, feed: Feed, connection: Connection) -> None:
        assert connection.writable
        self.resumptions += 1

    def acked(self, feed: Feed, seq: int) -> None:
        self.acks += 1


class StubConversation:
    """Remembers what clients said."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.bad: list[Binary | TooLarge] = []

    def on_text(self, _connection: Connection, data: bytes) -> None:
        self.texts.append(data)

    def on_bad_frame(self, _connection: Connection, event: Binary | TooLarge) -> None:
        self.bad.append(event)


class StubEndpoint:
    """Opens every socket as soon as ``let_in`` is set."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.hub = StubHub()
        self.conversation = StubConversation()
        self.tick = 7
        self.let_in = asyncio.Event()
        self.heads: list[bytes] = []
        self.opened: list[asyncio.Task[None]] = []
        self.accepted: list[bool] = []
        self.client_closes: list[int] = []
        self.closes: list[int] = []
        self.gone: list[Connection] = []
        self.asked: list[str] = []
        self.retired: list[str] = []
        self.kept: list[asyncio.Task[None]] = []
        self.slow = self.slowed = 0

    @property
    def connections(self) -> Any:
        return self

    async def open(self, connection: Connection, head: bytes) -> None:
        self.heads.append(head)
        await self.let_in.wait()
        decoder = FrameDecoder(self.settings.message_max_bytes, self.settings.skip_max_bytes)
        self.accepted.append(connection.accept(SWITCHING, decoder))
        connection.identity = IDENTITY
        connection.feed = Feed(b"s")

    def on_opened(self, task: asyncio.Task[None]) -> None:
        self.opened.append(task)

    def on_client_close(self, _connection: Connection, code: int) -> None:
        self.client_closes.append(code)

    def on_gone(self, connection: Connection) -> None:
        self.gone.append(connection)

    def count_close(self, code: int) -> None:
        self.closes.append(code)

    def ask_to_reconnect(self, _connection: Connection, reason: str) -> None:
        self.asked.append(reason)

    def retire(self, _connection: Connection, reason: str) -> None:
        self.retired.append(reason)

    def keep(self, noting: asyncio.Task[None]) -> None:
        self.kept.append(noting)


class Wire:
    """A connection, what is before it and what is behind it."""

    def __init__(self, **settings: Any) -> None:
        self.endpoint = StubEndpoint(**settings)
        self.hub = self.endpoint.hub
        self.transport = FakeTransport()
        self.connection = Connection(cast("WebSocketEndpoint", self.endpoint))
        self.connection.connection_made(self.transport)

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """What was written since the socket was accepted."""
        return list(split_frames(self.transport.data.removeprefix(SWITCHING)))

    @property
    def close_codes(self) -> list[int]:
        return close_codes(self.transport.data.removeprefix(SWITCHING))

    def receive(self, *frames: bytes) -> None:
        self.connection.data_received(b"".join(frames))

    def lose(self, error: Exception | None = None) -> None:
        self.transport.buffered = 0  # as the loops do it
        self.connection.connection_lost(error)


async def opened(**settings: Any) -> Wire:
    wire = Wire(**settings)
    wire.endpoint.let_in.set()
    wire.receive(HEAD)
    await settle()
    assert wire.connection.state == State.OPEN
    return wire


# Opening.


async def test_head_is_judged_and_answered() -> None:
    """The request goes to the endpoint; the answer is written, and the transport told its limit."""
    wire = await opened(send_buffer_bytes=5_000)

    assert wire.endpoint.heads == [HEAD]
    assert wire.transport.data == SWITCHING
    assert wire.transport.high == 5_000
    assert [task.done() for task in wire.endpoint.opened] == [True]


async def test_bytes_before_the_answer() -> None:
    """A client that does not wait for the answer is dropped, and its handshake ended."""
    wire = Wire()
    wire.receive(HEAD)
    await settle()
    wire.receive(masked(TEXT, b"{}"))
    await settle()

    assert wire.transport.closing
    assert [task.cancelled() for task in wire.endpoint.opened] == [True]
    assert wire.endpoint.accepted == []
    wire.lose()
    assert wire.endpoint.gone == [wire.connection]


async def test_client_that_leaves_during_the_handshake() -> None:
    """A socket that is lost before its answer is not accepted, whatever the answer."""
    wire = Wire()
    wire.receive(HEAD)
    await settle()
    wire.lose()
    wire.endpoint.let_in.set()
    await settle()

    assert wire.endpoint.accepted == [False]
    assert wire.transport.data == b""


async def test_client_that_is_leaving_during_the_handshake() -> None:
    """Neither is one whose transport is being closed."""
    wire = Wire()
    wire.receive(HEAD)
    wire.transport.close()
    wire.endpoint.let_in.set()
    await settle()

    assert wire.endpoint.accepted == [False]
    assert wire.transport.data == b""


async def test_refusal_is_written_and_the_transport_closed() -> None:
    """An HTTP answer ends the connection."""
    wire = Wire()
    wire.receive(HEAD)
    wire.connection.refuse(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    assert wire.transport.data.startswith(b"HTTP/1.1 503")
    assert wire.transport.closing


async def test_refusal_that_comes_too_late() -> None:
    """No HTTP answer is written into an open socket, nor into one that is being closed."""
    wire = await opened()
    wire.connection.close(4003, "replaced")
    wire.connection.refuse(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    assert wire.close_codes == [4003]
    assert b"503" not in wire.transport.data


async def test_refusal_of_nobody() -> None:
    """A client that has gone cannot be answered."""
    wire = Wire()
    wire.lose()
    wire.connection.refuse(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    assert wire.transport.data == b""


# Frames.


async def test_frames_go_where_they_belong() -> None:
    """Texts and what cannot be taken go to the conversation; pings are answered; pongs only count as life."""
    wire = await opened(message_max_bytes=10)
    wire.connection.heard = 0
    wire.receive(
        masked(TEXT, b"{}"),
        masked(BINARY, b"123"),
        masked(TEXT, b"x" * 11),
        masked(PING, b"are you there"),
        masked(PONG, b"yes"),
    )

    conversation = wire.endpoint.conversation
    assert conversation.texts == [b"{}"]
    assert conversation.bad == [Binary(3), TooLarge(11)]
    assert wire.frames == [(PONG, b"are you there")]
    assert wire.connection.heard == 7


async def test_frames_cut_anywhere() -> None:
    """How a client's bytes are cut on their way changes nothing."""
    wire = await opened()
    for byte in masked(TEXT, b"hel", final=False) + masked(0, b"lo"):
        wire.receive(bytes((byte,)))

    assert wire.endpoint.conversation.texts == [b"hello"]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(b"\x81\x02{}", 1002, id="not masked"),
        pytest.param(masked(3), 1002, id="unknown opcode"),
        pytest.param(masked(TEXT, b"\xff"), 1007, id="not UTF-8"),
        pytest.param(b"\x81\xff" + (2**40).to_bytes(8, "big") + b"mask", 4505, id="beyond every limit"),
    ],
)
async def test_protocol_violation(bad: bytes, code: int) -> None:
    """What cannot be read ends the socket with a code that says why; what came before it still counts."""
    wire = await opened()
    wire.receive(masked(TEXT, b"{}"), bad, masked(TEXT, b"later"))

    assert wire.endpoint.conversation.texts == [b"{}"]
    assert wire.close_codes == [code]
    assert wire.transport.closing
    assert wire.endpoint.closes == [code]
    assert len(wire.hub.detached) == 1
    wire.receive(masked(TEXT, b"still later"))
    assert wire.endpoint.conversation.texts == [b"{}"]
    assert wire.close_codes == [code]


# Closing.


async def test_closing_awaits_the_clients_answer() -> None:
    """After our Close nothing more is written and only the client's Close is read; that ends it."""
    wire = await opened()
    wire.connection.close(1012, "the pod restarts")
    wire.connection.write(b"\x81\x00")
    wire.connection.close(4002, "again")
    wire.receive(masked(TEXT, b"{}"), masked(PING, b"x"))
    assert not wire.transport.closing
    wire.receive(masked(CLOSE, (1012).to_bytes(2, "big")))

    assert wire.frames == [(CLOSE, (1012).to_bytes(2, "big") + b"the pod restarts")]
    assert wire.transport.closing
    assert wire.endpoint.conversation.texts == []
    assert wire.endpoint.client_closes == []
    assert wire.endpoint.closes == [1012]


async def test_closing_detaches_at_once() -> None:
    """A socket that is being closed gets no more messages that would count as sent."""
    wire = await opened()
    wire.connection.seq = 5
    wire.connection.close(1012, "")
    assert wire.hub.detached == [5]
    assert wire.connection.feed is None
    wire.lose()

    assert wire.hub.detached == [5]
    assert wire.endpoint.gone == [wire.connection]


async def test_notes_of_what_was_sent_are_handed_on() -> None:
    """However a socket ends, the endpoint knows of the note that is on its way."""
    for end in (Wire.lose, lambda wire: wire.connection.close(1012, "")):
        wire = await opened()
        wire.hub.noting = asyncio.create_task(asyncio.sleep(0))
        end(wire)
        assert wire.endpoint.kept == [wire.hub.noting]


async def test_who_can_be_asked_to_leave() -> None:
    """A socket on its session, until it is asked; it is busy while something is under way to its client."""
    wire = Wire()
    assert not wire.connection.attached
    wire = await opened()
    assert (wire.connection.attached, wire.connection.busy) == (True, False)
    wire.connection.in_flight = 1
    assert wire.connection.busy
    wire.connection.in_flight = 0
    wire.transport.buffered = 1
    assert wire.connection.busy
    wire.transport.buffered = 0
    wire.connection.retire("the pod restarts")
    assert wire.endpoint.retired == ["the pod restarts"]
    wire.connection.close(1012, "")

    assert not wire.connection.attached


async def test_client_that_does_not_answer_our_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never answers is cut off."""
    monkeypatch.setattr(connection_module, "_CLOSE_HANDSHAKE_S", 0.001)
    wire = await opened()
    wire.connection.close(1012, "")
    async with asyncio.timeout(5):
        await wire.transport.aborted.wait()


@pytest.mark.parametrize("ending", ["finish", "violation"])
async def test_client_that_does_not_read_our_close(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that cannot send what it holds is not held for ever, whoever began to close."""
    monkeypatch.setattr(connection_module, "_CLOSE_HANDSHAKE_S", 0.001)
    wire = await opened()
    wire.transport.buffered = 1_000
    if ending == "finish":
        wire.connection.finish(1000)
    else:
        wire.receive(masked(3))
    assert wire.transport.closing
    async with asyncio.timeout(5):
        await wire.transport.aborted.wait()


async def test_close_of_the_client() -> None:
    """The endpoint is told, and answers when what was sent has been noted."""
    wire = await opened()
    wire.receive(masked(TEXT, b"{}"), masked(CLOSE, (3001).to_bytes(2, "big") + b"bye"))
    assert wire.endpoint.client_closes == [3001]
    assert wire.frames == []

    wire.connection.finish(3001)
    assert wire.frames == [(CLOSE, (3001).to_bytes(2, "big"))]
    assert wire.transport.closing
    assert wire.endpoint.closes == [3001]


async def test_close_of_the_client_without_a_code() -> None:
    """It counts as done."""
    wire = await opened()
    wire.receive(masked(CLOSE))

    assert wire.endpoint.client_closes == [1000]


async def test_finished_socket_is_off_its_session() -> None:
    """What a socket is not given any more must not count as sent to it."""
    wire = await opened()
    wire.connection.seq = 5
    wire.transport.buffered = 10
    wire.connection.finish(1000)

    assert wire.hub.detached == [None]
    assert wire.connection.feed is None


async def test_finishing_twice() -> None:
    """A goodbye that crosses with ours is not answered again."""
    wire = await opened()
    wire.connection.close(1012, "")
    wire.connection.finish(1000)

    assert wire.close_codes == [1012]
    assert wire.endpoint.closes == [1012]


async def test_lost_connection() -> None:
    """A connection that is gone is off its session and off the wheel, and can be told anything."""
    wire = await opened()
    wire.lose()

    assert wire.connection.state == State.CLOSED
    assert wire.endpoint.gone == [wire.connection]
    assert len(wire.hub.detached) == 1
    wire.connection.write(b"x")
    wire.connection.close(1012, "")
    wire.connection.finish(1000)
    wire.connection.drop()
    assert wire.frames == []
    assert wire.endpoint.closes == []


async def test_losing_the_connection_stops_its_timers() -> None:
    """No timer outlives its socket."""
    wire = await opened()
    wire.connection.pause_writing()
    wire.connection.close(1012, "")
    timers = [wire.connection._slow_timer, wire.connection._close_timer]
    wire.lose()

    assert [timer is not None and timer.cancelled() for timer in timers] == [True, True]
    assert (wire.endpoint.slow, wire.endpoint.slowed) == (0, 1)


async def test_replaced_and_restarted() -> None:
    """What the hub asks for becomes a close code that tells the client what to do."""
    replaced, restarted = await opened(), await opened()
    replaced.connection.replaced()
    restarted.connection.restart("the log began anew")

    assert replaced.close_codes == [4003]
    assert restarted.endpoint.asked == ["the log began anew"]


# Clients that do not read.


async def test_slow_consumer_is_closed() -> None:
    """A socket that reads nothing for the time that is set is closed with 4001."""
    wire = await opened(slow_consumer_timeout_s=0.001)
    assert wire.connection.writable
    wire.connection.pause_writing()
    assert not wire.connection.writable
    wire.transport.wrote.clear()
    async with asyncio.timeout(5):
        await wire.transport.wrote.wait()

    assert wire.close_codes == [4001]
    assert wire.endpoint.closes == [4001]


async def test_consumer_that_reads_again() -> None:
    """A socket that reads before its time is over goes on, and the hub is told."""
    wire = await opened()
    wire.connection.pause_writing()
    timer = wire.connection._slow_timer
    wire.connection.resume_writing()

    assert wire.connection.writable
    assert wire.transport.reading
    assert wire.hub.resumptions == 1
    assert (wire.endpoint.slow, wire.endpoint.slowed) == (0, 1)
    assert timer is not None
    assert timer.cancelled()


async def test_who_does_not_read_is_not_listened_to() -> None:
    """What a client says while it does not read would be answered into a buffer that nothing bounds."""
    wire = await opened()
    wire.connection.pause_writing()

    assert not wire.transport.reading


async def test_reading_again_after_the_end() -> None:
    """A socket that reads again while it is closed is sent nothing more."""
    wire = await opened()
    wire.connection.pause_writing()
    wire.connection.close(1012, "")
    wire.connection.resume_writing()

    assert wire.hub.resumptions == 0


# What has been sent.


async def test_sent_is_what_left_the_process() -> None:
    """While anything is in the transport's buffer, nobody can tell how much of it was sent."""
    wire = await opened()
    wire.connection.seq = 3
    assert wire.connection.sent == 3
    wire.transport.buffered = 1
    assert wire.connection.sent is None
    wire.transport.buffered = 0
    assert wire.connection.sent == 3


async def test_a_client_that_acks_is_believed() -> None:
    """Once a client acknowledges, only that counts, whatever the transport says."""
    wire = await opened()
    wire.connection.seq = 5
    wire.connection.acked = 3
    assert wire.connection.sent == 3
    wire.transport.buffered = 100
    assert wire.connection.sent == 3
    wire.connection.acked = 0
    assert wire.connection.sent == 0


async def test_acks_only_move_forward() -> None:
    """The hub is told of what is new, so that it is noted; an older ack changes nothing."""
    wire = await opened()
    wire.connection.seq = 5
    for seq in (3, 2, 3, 5):
        wire.connection.ack(seq)
    assert wire.connection.sent == 5
    assert wire.hub.acks == 2
    wire.connection.feed = None
    wire.connection.ack(6)

    assert wire.hub.acks == 2


@pytest.mark.parametrize(
    ("error", "sent"), [(ConnectionResetError("reset by peer"), None), (None, 3)], ids=["cut", "closed"]
)
async def test_sent_of_a_lost_connection(error: Exception | None, sent: int | None) -> None:
    """A transport that was cut off has thrown its buffer away: that does not count as sent.

    One that was closed in order has sent everything before.
    """
    wire = await opened()
    wire.connection.seq = 3
    wire.lose(error)

    assert wire.hub.detached == [sent]


async def test_acks_of_a_lost_connection() -> None:
    """What the client acknowledged stays true."""
    wire = await opened()
    wire.connection.seq = 3
    wire.connection.ack(2)
    wire.lose(ConnectionResetError())

    assert wire.hub.detached == [2]


async def test_a_ping_is_a_frame_and_a_message() -> None:
    """Libraries answer the frame; a browser's code cannot see it, and learns from the message."""
    wire = await opened()
    before = len(wire.frames)
    wire.connection.beat()
    ping, message = wire.frames[before:]

    assert ping == (9, b"")
    assert json.loads(message[1])["type"] == "ping"
