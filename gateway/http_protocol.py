"""uvicorn's HTTP protocol with bounds on what a client may send, and for how long.

uvicorn keeps header lines without limit and lets a connection that says nothing stay for ever.

An answer that does not end by itself leaves it: once its head is written, the endpoint hands the transport
over (see `connection_of`). An ASGI response would need a task per client, and a queue between the task and
what is written: of a client that does not read, only the transport itself can tell.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import MutableMapping
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import ClientError
from gateway.handshake import refuse_response
from gateway.problem import problem_body

MAX_HEAD_BYTES = 16 * 1024
_EXTENSION = "orchestrator.connection"
MOST_PIPELINED = 16  # requests that wait for the answer to one before them, on one connection


class HalfOpen:
    """The connections of a pod that wait for (the rest of) a head: the oldest has to go for one too many.

    So whoever opens connections and says nothing cannot keep out those who have something to say.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[BoundedHttpProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: BoundedHttpProtocol) -> None:
        """A head is awaited."""
        self._waiting[connection] = None
        if len(self._waiting) > self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()

    def discard(self, connection: BoundedHttpProtocol) -> None:
        """It is awaited no more."""
        self._waiting.pop(connection, None)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One HTTP connection; the class attributes are set on a subclass (see `bounded_protocol`)."""

    head_timeout_s = 10.0
    half_open = HalfOpen(10_000)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._reading: RequestResponseCycle | None = None  # the request of which the body is coming
        self._head_timer: asyncio.TimerHandle | None = None
        self._upgraded = False
        self._came = 0  # bytes in the last segment

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._came = len(data)
        super().data_received(data)
        if self._idle and self._head_timer is None and not self._upgraded and not self.transport.is_closing():
            # uvicorn stops its keep-alive timer at any byte, also one (CRLF) that begins no request.
            self._arm()
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the request's head is over {MAX_HEAD_BYTES} bytes")

    @property
    def _idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _is_unread(self) -> bool:
        """Whether a request was answered before all of its body came."""
        return self._reading is not None and self._reading.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._is_unread and self._head_timer is None:
            self._arm()  # the rest of it is thrown away, but not for as long as the client likes
        elif self._idle:
            self.half_open.add(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._arm()

    def on_header(self, name: bytes, value: bytes) -> None:
        # The parser brings trailers the same way. A request is judged by its head: what comes behind the body
        # is no part of that (RFC 9110, 6.5.1), and nothing would bound it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head is over {MAX_HEAD_BYTES} bytes")
            return
        if self.transport.is_closing() or len(self.pipeline) >= MOST_PIPELINED:
            # Each would wait with objects of many times its own size. Without an answer: those before it
            # have not got theirs.
            self.transport.close()
            return
        if not self._is_plain():
            detail = "the body must have a Content-Length or be chunked, and the host be named once"
            self._refuse(400, detail)
            return
        # Weakly: what a request holds, it would leave to the garbage collector.
        self.scope["extensions"] = {_EXTENSION: weakref.ref(self)}  # type: ignore[dict-item]
        super().on_headers_complete()
        self._reading = self.cycle

    def _is_plain(self) -> bool:
        """Whether another reader finds the same end of the body, and the same host (RFC 9112, 6.1 and 3.2).

        The parser itself refuses two lengths, and a length beside a coding. But it takes any codings of which
        the last is "chunked", and takes them in HTTP/1.0 too, of which proxies may know nothing.
        """
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if sum(name == b"host" for name, _ in self.headers) > 1:
            return False
        return not codings or (codings == [b"chunked"] and self.parser.get_http_version() != "1.0")

    def on_message_complete(self) -> None:
        self._reading = None
        super().on_message_complete()
        self._head_bytes = 0

    def handle_websocket_upgrade(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # Its answer would be written into the socket's frames.
            self._refuse(400, "an upgrade must wait for the answer to the request before it")
            return
        upgrade = sys.exception()  # uvicorn calls this while it handles the parser's
        if isinstance(upgrade, httptools.HttpParserUpgrade) and upgrade.args[0] < self._came:
            # uvicorn would lose these bytes, and what follows a half of a frame be read as a head.
            self._refuse(400, "nothing may be sent before the answer to an upgrade")
            return
        self._upgraded = True
        self._disarm()
        super().handle_websocket_upgrade()
        # It holds this in turn: each socket would leave both of them to the garbage collector.
        self.parser = None  # type: ignore[assignment]

    # An answer that does not end by itself.

    @property
    def peer(self) -> str | None:
        """The address at the other end; None if it has none."""
        name = self.transport.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else None

    def begin_stream(self, scope: MutableMapping[str, Any]) -> None:
        """Prepare for an answer that will be handed over; call it right before its head is sent.

        It is chunked, but for HTTP/1.0, where it ends with the connection.

        Raises:
            ClientError: 400, another request stands behind this one: it would have no answer.
        """
        cycle = self.cycle
        if cycle.scope is not scope:
            raise ClientError(400, "bad_request", "nothing may be asked behind an event stream")
        # No "Connection: close" is promised: node takes a chunked body that breaks off for a whole one then.
        cycle.keep_alive = True
        if scope["http_version"] == "1.0":
            cycle.chunked_encoding = False

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Give the transport away, right behind the head of the answer; at once gone if the client is."""
        self._disarm()
        self._unset_keepalive_if_required()
        self.cycle.response_complete = True  # as far as uvicorn has to do with it
        self.server_state.total_requests += 1
        self.connections.discard(self)
        if self.cycle.disconnected or self.transport.is_closing():
            protocol.connection_lost(None)
            return
        self._upgraded = True
        self.flow.resume_reading()
        self.transport.set_protocol(protocol)
        self.parser = None  # type: ignore[assignment]  # it holds this in turn
        protocol.connection_made(self.transport)

    def _arm(self) -> None:
        self.half_open.add(self)
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_late)

    def _disarm(self) -> None:
        self.half_open.discard(self)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._disarm()
        if self._is_unread:
            self.transport.close()  # it has its answer
        elif not self.transport.is_closing():
            self._refuse(408, f"the request's head did not come within {self.head_timeout_s:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        self.transport.write(refuse_response(status, (), problem_body(status, "bad_request", detail)))
        self.transport.close()


def connection_of(scope: MutableMapping[str, Any]) -> BoundedHttpProtocol:
    """The connection on which a request came.

    Raises:
        ClientError: 400, it has gone.
    """
    found: BoundedHttpProtocol | None = scope["extensions"][_EXTENSION]()
    if found is None:
        raise ClientError(400, "bad_request", "the connection has gone")
    return found


def bounded_protocol(head_timeout_s: float, half_open_max: int = 10_000) -> type[BoundedHttpProtocol]:
    """The protocol class for a server.

    Args:
        head_timeout_s: time in which a request's head has to come, from connecting or from its first byte.
        half_open_max: connections whose heads may be awaited at the same time.
    """
    limits = {"head_timeout_s": head_timeout_s, "half_open": HalfOpen(half_open_max)}
    return type("HttpProtocol", (BoundedHttpProtocol,), limits)
