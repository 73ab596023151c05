"""One WebSocket: bytes to events, frames to the transport, and nothing else held while it is idle.

uvicorn reads the request head and hands the transport over (its ``ws=`` protocol class). While the socket is
being opened there is a task; after that there is none, no queue and no timer: its frames are written straight
to the transport, one wheel pings all sockets of the pod, and what a full transport cannot take stays in the
session's log in Redis until it can.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from gateway import frames, outgoing
from gateway.close_codes import CloseCode
from gateway.framing import SOCKET_FRAMING
from gateway.identity import Identity
from gateway.listener import Listener, State

if TYPE_CHECKING:
    from gateway.websocket_endpoint import WebSocketEndpoint

_CLOSE_HANDSHAKE_S = 5.0  # RFC 6455, 7.1.1: the client's Close is awaited, but not for ever
_REFUSED_S = 1.0  # and hardly at all of who was not let in


class Connection(Listener):
    """A client's socket."""

    __slots__ = (
        "_decoder",
        "_endpoint",
        "_opening",
        "bad_frames",
        "full_at",
        "in_flight",
        "strikes",
        "struck_at",
    )

    framing = SOCKET_FRAMING
    renewal = "send auth with a new one"

    def __init__(self, endpoint: WebSocketEndpoint) -> None:
        super().__init__(endpoint.connections)
        self._endpoint = endpoint
        self._decoder: frames.FrameDecoder | None = None
        self._opening: asyncio.Task[None] | None = None
        self.full_at = 0.0  # see `gateway.pace`
        self.strikes = 0  # messages over a rate limit, one after the other
        self.struck_at = 0.0
        self.bad_frames = 0
        self.in_flight = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard = self._connections.tick
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
        self._transport.set_write_buffer_limits(high=self._connections.settings.send_buffer_bytes)
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

    # While it is open.

    def ack(self, seq: int) -> None:
        """The client has dealt with the session's messages up to ``seq``."""
        if seq > self.acked:
            self.acked = seq
            if self.feed is not None:
                self._connections.hub.acked(self.feed, seq)

    def beat(self) -> None:
        # Both kinds: libraries answer the frame by themselves, and a browser's code, which cannot see it,
        # learns from the message that the server lives.
        ping = outgoing.message(self.identity, time.time(), "ping", {})
        self.write(frames.encode_ping() + self.framing.message(ping))

    @property
    def busy(self) -> bool:
        return self.in_flight > 0 or super().busy

    def renew(self, identity: Identity) -> None:
        """Go on under a new token."""
        self._connections.renew(self, identity)

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
        self._connections.count_close(code)
        self.detach()
        transport.write(frames.encode_close(code, reason))
        self.state = State.CLOSING
        # Also where the client's Close has come already: what it does not read keeps the transport open.
        self._close_within(_CLOSE_HANDSHAKE_S if self.slot >= 0 else _REFUSED_S)

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
