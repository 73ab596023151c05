"""A client's connection to its session, whatever is spoken on it: its place there, its transport's bounds.

There is no task, no queue and no timer for it while it is idle: what it is sent is written straight to the
transport, and what a full transport cannot take stays in the session's log in Redis until it can.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

from backplane.trace_context import NO_TRACE
from gateway.close_codes import CloseCode
from gateway.feed import Feed
from gateway.framing import Framing
from gateway.identity import Identity
from gateway.text_stream import envelope

if TYPE_CHECKING:
    from gateway.open_connections import OpenConnections


_CUT_OFF = 1006  # RFC 6455, 7.1.5: it ended without a Close


class State(IntEnum):
    """What a connection's bytes mean."""

    OPENING = 0
    """The request is being judged; the client may not send anything yet."""
    OPEN = 1
    CLOSING = 2
    """It was told that it ends; its client, or the transport, has yet to be done with it."""
    CLOSED = 3


class Listener(asyncio.Protocol):
    """A `gateway.feed.Subscriber`, and a `gateway.drain.Leaving`.

    Attributes:
        framing: how messages are written to it.
        kind: what it is, for operators.
        gone_code: as which it counts if its client goes without a word.
        renewal: what its client does when its token has expired.
        trace: of the request that opened it, for log events; what is said on it is not of that trace.
    """

    __slots__ = (
        "_close_timer",
        "_connections",
        "_slow_timer",
        "_transport",
        "acked",
        "address",
        "admitted",
        "behind",
        "connection_id",
        "counted",
        "expires",
        "feed",
        "generation",
        "heard",
        "identity",
        "seq",
        "since",
        "slot",
        "state",
        "token_ends",
        "topics",
        "trace",
        "wants_chunks",
    )

    framing: Framing
    kind = "socket"
    gone_code = _CUT_OFF
    renewal = "connect again with a new one"

    def __init__(self, connections: OpenConnections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
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
        self.heard = 0  # the wheel's tick at which the client was last known to be there
        self.slot = -1
        self.expires = 0  # the wheel's tick from which on it is asked to reconnect; 0: never
        self.since = 0  # when it was accepted, seconds since 1970
        self.address: str | None = None  # by which it is counted
        self.admitted = False  # counted on this pod
        self.counted = False  # counted on all pods
        self.token_ends = 0  # the second in which `gateway.expiry` looks at it
        self.topics: set[str] | None = None
        self.trace = NO_TRACE

    # asyncio.Protocol

    def pause_writing(self) -> None:
        # Nor is it listened to: answers to what it says would pile up where nothing bounds them.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._connections.slow += 1
        self._connections.slowed += 1
        delay_s = self._connections.settings.slow_consumer_timeout_s
        loop = asyncio.get_running_loop()
        self._slow_timer = loop.call_later(
            delay_s,
            self.close,
            CloseCode.SLOW_CONSUMER,
            "the socket does not read; come back with the cursor",
        )

    def resume_writing(self) -> None:
        self._not_slow()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if self.feed is not None and self.state == State.OPEN:
            self._connections.hub.resumed(self.feed, self)

    def _not_slow(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
            self._connections.slow -= 1

    def eof_received(self) -> None:
        """The transport closes itself; `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._transport = None  # cut off: its buffer was thrown away, so `sent` cannot be told from it
        self.detach()
        if self.state == State.OPEN and self.slot >= 0:
            self._connections.count_close(self.gone_code)
        self.state = State.CLOSED
        self._not_slow()
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        self._transport = None
        self._connections.on_gone(self)

    @property
    def peer(self) -> str | None:
        """The address at the other end; None if it has none."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else None

    @property
    def buffered_bytes(self) -> int:
        """What it has not taken yet of what was written to it."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

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

    def say(self, payload: bytes) -> None:
        """Send a message that is in no log.

        Args:
            payload: its JSON.
        """
        self.write(self.framing.message(payload))

    def replaced(self) -> None:
        self.close(CloseCode.REPLACED, "a newer connection of the session took over")

    def restart(self, reason: str) -> None:
        self._connections.ask_to_reconnect(self, reason)

    # What differs by what is spoken.

    def welcome(self, payload: bytes, _cursor: str) -> None:
        """Send the first message.

        Args:
            payload: its JSON.
            cursor: the position that it tells.
        """
        self.say(payload)

    def send_away(self, payload: bytes, _after_ms: int) -> None:
        """Send the message that asks the client to come back after a while."""
        self.say(payload)

    def beat(self) -> None:
        """Show the client that the server is there."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        """End it; from now on the session does without this connection.

        Args:
            code: of `CloseCode`, whether or not the client can be told of it.
        """
        raise NotImplementedError

    # gateway.drain.Leaving

    @property
    def attached(self) -> bool:
        return self.feed is not None and self.state == State.OPEN

    @property
    def busy(self) -> bool:
        # What has not left the process counts as not sent, and would come again.
        return self.sent is None

    def retire(self, reason: str) -> None:
        self._connections.retire(self, reason)

    # Closing.

    def drop(self) -> None:
        """Close the transport when it has sent what it holds."""
        if self._transport is not None:
            self._transport.close()

    def _close_within(self, patience_s: float) -> None:
        self._close_timer = asyncio.get_running_loop().call_later(patience_s, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def detach(self) -> asyncio.Task[None] | None:
        """Leave the session; returns the task that notes what was sent, if there is one."""
        feed, self.feed = self.feed, None
        noting = None if feed is None else self._connections.hub.detach(feed, self)
        if noting is not None:
            self._connections.keep(noting)
        return noting
