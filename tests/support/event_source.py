"""Readers of event streams: one response, byte by byte, and a client that comes back as a browser's does."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlencode

PATH = "/api/chat/sessions/{}/events"


class Event(NamedTuple):
    """An event; ``data`` is as it came."""

    event_id: str | None
    name: str | None
    data: str

    @property
    def message(self) -> dict[str, Any]:
        """Its data, decoded."""
        found: dict[str, Any] = json.loads(self.data)
        return found


class Cut(Exception):
    """The connection broke before the end of the response."""


def events_path(session_id: str, *, tenant_id: str | None = "acme", **query: str) -> str:
    """The address of a session's events; ``tenant_id`` None leaves it to the token."""
    who = {} if tenant_id is None else {"tenant_id": tenant_id, "tenant_tier": "free"}
    words = {**who, **query}
    return PATH.format(session_id) + (f"?{urlencode(words)}" if words else "")


class Stream:
    """One response; a context manager.

    Attributes:
        status, headers: of the response; header names in lower case.
        body: of one that is no event stream.
        last_event_id: as the client would send it.
        retry_ms: what the server has asked for.
        comments: how many came.
        ended: when the response was whole.
        rest: bytes that were not read as events yet.
    """

    def __init__(
        self,
        port: int,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        version: str = "1.1",
        body: bytes | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self.ended = False
        self.rest = b""
        self._lines = b""
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        fields = {"Host": f"127.0.0.1:{port}", "Accept": "text/event-stream", **(headers or {})}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        while b"\r\n\r\n" not in self.rest:
            if not self.fill():
                raise Cut("no response")
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        line, *given = head.decode().split("\r\n")
        self.status = int(line.split()[1])
        self.headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in given)}
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        self.body = b""
        if self.status != 200 and method != "HEAD":
            size = int(self.headers.get("content-length", 0))
            while len(self.rest) < size and self.fill():
                pass
            self.body = self.rest

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of a refusal."""
        assert self.headers["content-type"] == "application/problem+json", self.headers
        return self.status, json.loads(self.body)["error_code"]

    def fill(self) -> bool:
        """Read more; False if the connection has ended."""
        try:
            part = self._socket.recv(65_536)
        except ConnectionError:
            return False
        self.rest += part
        return bool(part)

    def _more(self) -> bool:
        """Read one chunk; False at the end of the response.

        Raises:
            Cut: the connection broke.
        """
        if not self._chunked:
            if not self.rest and not self.fill():
                self.ended = True
                return False
            self._lines, self.rest = self._lines + self.rest, b""
            return True
        while b"\r\n" not in self.rest:
            if not self.fill():
                raise Cut(f"after {self.last_event_id!r}")
        size = int(self.rest.split(b"\r\n", 1)[0], 16)
        start = self.rest.index(b"\r\n") + 2
        while len(self.rest) < start + size + 2:
            if not self.fill():
                raise Cut(f"after {self.last_event_id!r}")
        self._lines += self.rest[start : start + size]
        self.rest = self.rest[start + size + 2 :]
        self.ended = not size
        return bool(size)

    def receive(self, timeout_s: float = 10.0) -> Event | None:
        """The next event; None at the end of the response.

        Raises:
            Cut: the connection broke.
            TimeoutError: nothing came.
        """
        until = time.monotonic() + timeout_s
        while True:
            while b"\n\n" not in self._lines:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no event came")
                self._socket.settimeout(left)
                if not self._more():
                    return None
            block, _, self._lines = self._lines.partition(b"\n\n")
            event = self._read(block.decode())
            if event is not None:
                return event

    def _read(self, block: str) -> Event | None:
        data: list[str] = []
        event_id = name = None
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not field:
                self.comments += 1
            elif field == "data":
                data.append(value)
            elif field == "id":
                event_id = value
            elif field == "event":
                name = value
            elif field == "retry":
                self.retry_ms = int(value)
        if event_id is not None:
            self.last_event_id = event_id
        return Event(event_id, name, "\n".join(data)) if data else None

    def messages(self, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """The next ``count`` messages."""
        found = []
        for _ in range(count):
            event = self.receive(timeout_s)
            assert event is not None, "the stream ended"
            found.append(event.message)
        return found

    def logged(self, count: int, timeout_s: float = 10.0) -> list[Event]:
        """The next ``count`` events of the session log; others are passed over."""
        found: list[Event] = []
        while len(found) < count:
            event = self.receive(timeout_s)
            assert event is not None, "the stream ended"
            if "seq" in event.message["metadata"]:
                found.append(event)
        return found


def until_cut(stream: Stream) -> Iterator[Event]:
    """All events until the connection breaks; it must not end."""
    try:
        while (event := stream.receive()) is not None:
            yield event
    except Cut:
        return
    raise AssertionError("the stream ended; it was to break")


class EventSource:
    """Comes back as a browser does: to the same address, with the last id; not after a refusal.

    Args:
        ports: one after the other, as a balancer gives them.
        path: with its query.
    """

    def __init__(self, ports: list[int], path: str) -> None:
        self._ports = ports
        self._path = path
        self.last_event_id = ""
        self.retry_s = 0.1
        self.connects = 0
        self.refused: tuple[int, str] | None = None

    def events(self) -> Iterator[Event]:
        """All events, until one connection is refused."""
        while True:
            headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
            port = self._ports[self.connects % len(self._ports)]
            self.connects += 1
            try:
                with Stream(port, self._path, headers) as stream:
                    if stream.status != 200:
                        self.refused = stream.problem
                        return
                    while (event := stream.receive(30)) is not None:
                        self.last_event_id = stream.last_event_id
                        yield event
                    self.retry_s = (stream.retry_ms or 100) / 1000
            except (Cut, ConnectionError):
                pass
            time.sleep(min(self.retry_s, 0.2))
