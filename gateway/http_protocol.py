"""uvicorn's HTTP protocol with bounds on what a client may send, and for how long.

uvicorn keeps header lines without limit and lets a connection that says nothing stay for ever.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.handshake import refuse_response
from gateway.problem import problem_body

MAX_HEAD_BYTES = 16 * 1024


class HalfOpen:
    """The connections of a pod whose request head is not complete: the oldest has to go for one too many.

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
        self._head_timer: asyncio.TimerHandle | None = None
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
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the request's head is over {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head is over {MAX_HEAD_BYTES} bytes")
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
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
        self._disarm()
        super().handle_websocket_upgrade()

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
        if not self.transport.is_closing():
            self._refuse(408, f"the request's head did not come within {self.head_timeout_s:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        self.transport.write(refuse_response(status, (), problem_body(status, "bad_request", detail)))
        self.transport.close()


def bounded_protocol(head_timeout_s: float, half_open_max: int = 10_000) -> type[BoundedHttpProtocol]:
    """The protocol class for a server.

    Args:
        head_timeout_s: time in which a request's head has to come, from connecting or from its first byte.
        half_open_max: connections whose heads may be awaited at the same time.
    """
    limits = {"head_timeout_s": head_timeout_s, "half_open": HalfOpen(half_open_max)}
    return type("HttpProtocol", (BoundedHttpProtocol,), limits)
