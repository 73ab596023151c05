"""One WebSocket: bytes to events, frames to the transport, and nothing else held while it is idle.

uvicorn reads the request head and hands the transport over (its ``ws=`` protocol class). While the socket is
being opened there is a task; after that there is none, no queue and no timer: its frames are written straight
to the transport, one wheel pings all sockets of the pod, and what a full transport cannot take stays in the
session's log in Redis until it can.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from gateway import frames
from gateway.close_codes import CloseCode
from gateway.feed import Feed
from gateway.identity import Identity
from gateway.text_stream import envelope

if TYPE_CHECKING:
    from gateway.websocket_endpoint import WebSocketEndpoint

_CLOSE_HANDSHAKE_S = 5.0  # RFC 6455, 7.1.1: the client's Close is awaited, but not for ever
_REFUSED_S = 1.0  # and hardly at all of who was not let in


class State(IntEnum):
    """What a connection's bytes mean."""

    OPENING = 0
    """The request is being judged; the client may not send anything yet."""
    OPEN = 1
    CLOSING = 2
    """A Close was sent, the client's is awaited; only that is still read."""
    CLOSED = 3


class Connection(asyncio.Protocol):
    """A client's socket; a `gateway.feed.Subscriber`."""

    __slots__ = (
        "_close_timer",
        "_decoder",
        "_endpoint",
        "_opening",
        "_slow_timer",
        "_transport",
        "acked",
        "address",
        "admitted",
        "bad_frames",
        "behind",
        "connection_id",
        "counted",
        "expires",
        "feed",
        "full_at",
        "generation",
        "heard",
        "identity",
        "in_flight",
        "seq",
        "since",
        "slot",
        "state",
        "strikes",
        "struck_at",
        "token_ends",
        "topics",
        "wants_chunks",
    )

    def __init__(self, endpoint: WebSocketEndpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._decoder: frames.FrameDecoder | None = None
        self._opening: asyncio.Task[None] | None = None
        self._slow_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self.state = State.OPENING
        self.identity: Identity | None = None
        self.feed: Feed | None = None
        self.connection_id = ""
        self.seq = 0
        self.acked = -1  # a client that acks is believed more than the transport
        self.generation = 0
        self.wants_chunks = False
        self.behind = False
        self.heard = 0  # the wheel's tick at which the client was last heard
        self.slot = -1
        self.expires = 0  # the wheel's tick from which on it is asked to reconnect; 0: never
        self.since = 0  # when it was accepted, seconds since 1970
        self.address: str | None = None  # by which it is counted
        self.admitted = False  # counted on this pod
        self.counted = False  # counted on all pods
        self.token_ends = 0  # the second in which `gateway.expiry` looks at it
        self.full_at = 0.0  # see `gateway.pace`
        self.strikes = 0  # messages over a rate limit, one after the other
        self.struck_at = 0.0
        self.bad_frames = 0
        self.in_flight = 0
        self.topics: set[str] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard = self._endpoint.tick
        if self._decoder is None:
            self._begin(data)
            return
        for event in self._decoder.feed(data):
            if self.state == State.OPEN:
                self._on_event(event)
            elif isinstance(event, frames.Close):
                self.drop()
        failure = self._decoder.failure
        if failure is not None:
            code = CloseCode.BAD_FRAME if failure.code == frames.TOO_BIG else failure.code
            self.close(code, str(failure))

    def pause_writing(self) -> None:
        # Nor is it listened to: answers to what it says would pile up where nothing bounds them.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        delay_s = self._endpoint.settings.slow_consumer_timeout_s
        loop = asyncio.get_running_loop()
        self._slow_timer = loop.call_later(
            delay_s,
            self.close,
            CloseCode.SLOW_CONSUMER,
            "the socket does not read; come back with the cursor",
        )

    def resume_writing(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if self.feed is not None and self.state == State.OPEN:
            self._endpoint.hub.resumed(self.feed, self)

    def eof_received(self) -> None:
        """The transport closes itself; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._transport = None  # cut off: its buffer was thrown away, so `sent` cannot be told from it
        self.detach()
        self.state = State.CLOSED
        for timer in (self._slow_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._slow_timer = self._close_timer = None
        self._transport = None
        self._endpoint.on_gone(self)

    @property
    def peer(self) -> str | None:
        """The address at the other end; None if it has none."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else None

    # Opening.

    def _begin(self, data: bytes) -> None:
        if self._opening is not None:  # bytes after the head, before they were allowed
            self._opening.cancel()
            self.drop()
            return
        self._opening = asyncio.create_task(self._endpoint.open(self, data))
        self._opening.add_done_callback(self._endpoint.on_opened)

    def accept(self, response: bytes, decoder: frames.FrameDecoder) -> bool:
        """Answer the upgrade request; False if the client has gone meanwhile."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.set_write_buffer_limits(high=self._endpoint.settings.send_buffer_bytes)
        self._transport.write(response)
        self._decoder = decoder
        self._opening = None
        self.state = State.OPEN
        return True

    def refuse(self, response: bytes) -> None:
        """Answer the upgrade request with an HTTP error; nothing once it was accepted."""
        if self._transport is not None and self.state == State.OPENING:
            self._transport.write(response)
            self._transport.close()

    # gateway.feed.Subscriber

    @property
    def envelope(self) -> bytes:
        identity = self.identity
        assert identity is not None
        return envelope(identity.session_id, identity.tenant_id, identity.tenant_tier)

    @property
    def writable(self) -> bool:
        return self._slow_timer is None

    @property
    def sent(self) -> int | None:
        if self.acked >= 0:
            return self.acked
        if self._transport is None or self._transport.get_write_buffer_size():
            return None
        return self.seq

    def write(self, data: bytes) -> None:
        if self._transport is not None and self.state == State.OPEN:
            self._transport.write(data)

    def ack(self, seq: int) -> None:
        """The client has dealt with the session's messages up to ``seq``."""
        if seq > self.acked:
            self.acked = seq
            if self.feed is not None:
                self._endpoint.hub.acked(self.feed)

    def replaced(self) -> None:
        self.close(CloseCode.REPLACED, "a newer connection of the session took over")

    def restart(self, reason: str) -> None:
        self._endpoint.ask_to_reconnect(self, reason)

    # gateway.drain.Leaving

    @property
    def attached(self) -> bool:
        return self.feed is not None and self.state == State.OPEN

    @property
    def busy(self) -> bool:
        # What has not left the process counts as not sent, and would come again.
        return self.in_flight > 0 or self.sent is None

    def retire(self, reason: str) -> None:
        self._endpoint.retire(self, reason)

    def renew(self, identity: Identity) -> None:
        """Go on under a new token."""
        self._endpoint.renew(self, identity)

    # Closing.

    def close(self, code: int, reason: str) -> None:
        """Send a Close and await the client's; from now on the session does without this socket."""
        if self.state != State.OPEN or self._transport is None:
            return
        self._say_close(self._transport, code, reason)
        if self._decoder is not None and self._decoder.closed:
            self.drop()

    def finish(self, code: int) -> None:
        """Answer the client's Close."""
        if self._transport is not None and self.state == State.OPEN:
            self._say_close(self._transport, code, "")
            self.drop()

    def _say_close(self, transport: asyncio.Transport, code: int, reason: str) -> None:
        self._endpoint.count_close(code)
        self.detach()
        transport.write(frames.encode_close(code, reason))
        self.state = State.CLOSING
        # Also where the client's Close has come already: what it does not read keeps the transport open.
        patience_s = _CLOSE_HANDSHAKE_S if self.slot >= 0 else _REFUSED_S
        self._close_timer = asyncio.get_running_loop().call_later(patience_s, self._abort)

    def drop(self) -> None:
        """Close the transport when it has sent what it holds."""
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def detach(self) -> asyncio.Task[None] | None:
        """Leave the session; returns the task that notes what was sent, if there is one."""
        feed, self.feed = self.feed, None
        noting = None if feed is None else self._endpoint.hub.detach(feed, self)
        if noting is not None:
            self._endpoint.keep(noting)
        return noting

    # Frames.

    def _on_event(self, event: frames.Event) -> None:
        if isinstance(event, frames.Text):
            self._endpoint.conversation.on_text(self, event.data)
        elif isinstance(event, frames.Ping):
            self.write(frames.encode_pong(event.data))
        elif isinstance(event, frames.Close):
            self._endpoint.on_client_close(self, event.code or CloseCode.DONE)
        elif isinstance(event, frames.Binary | frames.TooLarge):
            self._endpoint.conversation.on_bad_frame(self, event)
