"""One client that reads Server-Sent Events: what is written to it, and how it is sent away.

The request is judged by an ordinary endpoint, so that a refusal is an ordinary answer. The stream is put on
its session before the head of the answer is sent, because that may refuse it too; the little that it is told
by then is kept until the transport is its own. From then on there is no task and no queue.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import cast

from gateway import outgoing
from gateway.close_codes import COME_BACK, CloseCode
from gateway.errors import ClientError
from gateway.event_framing import NATIVE, EventFraming
from gateway.listener import Listener, State
from gateway.open_connections import OpenConnections

_LAST_WORDS_S = 5.0  # for a client to read them
_RETRY_MS = (500, 1500)  # at random, so that the clients of a pod that dies do not all come at once


class EventStream(Listener):
    """A client's event stream.

    Args:
        peer: the address at the other end.
        chunked: whether the end of the stream can be told from a connection that breaks.
    """

    __slots__ = ("_chunked", "_early", "_peer", "framing", "marks")

    framing: EventFraming
    kind = "event_stream"
    gone_code = int(CloseCode.DONE)  # its client has no other way to leave

    def __init__(self, connections: OpenConnections, peer: str | None, *, chunked: bool) -> None:
        super().__init__(connections)
        self._peer = peer
        self._chunked = chunked
        self._early: bytearray | None = bytearray()
        self.framing = NATIVE
        self.marks = True  # what it was sent counts as sent to the session

    @property
    def peer(self) -> str | None:
        return self._peer

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        settings = self._connections.settings
        self._transport.set_write_buffer_limits(high=settings.send_buffer_bytes)
        # A client says nothing by which it could be missed; that it takes what it is sent, its machine says.
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            patience_ms = max(1, round(2 * settings.heartbeat_s * 1000))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        early, self._early = self._early, None
        if early:
            self._transport.write(bytes(early))
        if self.state != State.OPEN:
            self._leave()
        elif self.framing.done:
            self._end_soon()
        elif self.behind and self.feed is not None:
            self._connections.hub.resumed(self.feed, self)

    def data_received(self, _data: bytes) -> None:
        """Nothing that the client says is for us, so it is not read either."""
        if self._transport is not None:
            self._transport.pause_reading()

    # gateway.feed.Subscriber

    @property
    def writable(self) -> bool:
        if self._early is not None:
            return len(self._early) < self._connections.settings.send_buffer_bytes
        return super().writable

    @property
    def sent(self) -> int | None:
        return super().sent if self.marks else 0

    def write(self, data: bytes) -> None:
        if self._early is None:
            super().write(data)
        elif self.state == State.OPEN:
            self._early += data
        if self.framing.done and self.state == State.OPEN:
            self._end_soon()

    def _end_soon(self) -> None:
        # Soon: whoever writes goes through a list of which this takes itself off.
        asyncio.get_running_loop().call_soon(self.close, CloseCode.DONE, "")

    def replaced(self) -> None:
        detail = "a newer connection of the session took over"
        error = ClientError(409, "replaced", detail)
        self.say(outgoing.error(self.identity, time.time(), error))
        self.close(CloseCode.REPLACED, detail)

    # What is said.

    def welcome(self, payload: bytes, cursor: str) -> None:
        self.write(self.framing.welcome(payload, cursor, random.randint(*_RETRY_MS)))

    def send_away(self, payload: bytes, after_ms: int) -> None:
        self.write(self.framing.send_away(payload, after_ms))

    def beat(self) -> None:
        self.heard = self._connections.tick  # it takes what it is sent
        self.write(self.framing.beat())

    # Closing.

    def close(self, code: int, _reason: str) -> None:
        if self.state != State.OPEN:
            return
        comes_back = code in COME_BACK
        self._connections.count_close(code)
        self.detach()
        slow = code == CloseCode.SLOW_CONSUMER
        whole = not (slow or (comes_back and self.framing.cuts))
        if whole:  # also where the transport takes no more: it is little, and it is the last
            # Who comes back with a bad token is refused, and that ends an EventSource for good.
            self.write(self.framing.end(comes_back=comes_back or code == CloseCode.BAD_TOKEN))
        self.state = State.CLOSING
        if self._transport is None:
            return  # not yet handed over
        if slow or not (whole or self._chunked):
            self._abort()
        else:
            self._leave()

    def _leave(self) -> None:
        """Close the transport when all has been read; not for ever.

        What is missing of a stream that is whole would not come again, so the client may be slow to read it.
        """
        self.drop()
        slow_s = self._connections.settings.slow_consumer_timeout_s
        self._close_within(max(slow_s, _LAST_WORDS_S) if self.framing.done else _LAST_WORDS_S)

    def abandon(self) -> None:
        """It came to nothing before the transport was handed over."""
        if self.state != State.CLOSED and self._early is not None:
            self.connection_lost(None)
