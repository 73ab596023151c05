"""HTTP and WebSocket by hand: exactly the bytes that an attacker wants to send, and all that comes back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

WITHIN_S = 15.0
_QUIET_S = 0.06  # after an acceptance: what else comes of itself comes at once
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_CODE = re.compile(rb'"error_code":"(\w+)"')
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_IN_FLIGHT = 12  # less than a pod allows on one socket
_KEY = "AAAAAAAAAAAAAAAAAAAAAA=="

Bytes = bytes | bytearray
Enough = Callable[[Bytes], bool]
Headers = Iterable[tuple[str | bytes, str | bytes]]


class Answer(NamedTuple):
    """What came of one attempt.

    Attributes:
        accepted: a 2xx, a connection_ack, or an ack.
    """

    accepted: bool
    sent: bytes
    received: bytes

    @property
    def mistake(self) -> bool:
        """Whether the pod did not know what to do: a 500."""
        return b"500" in _STATUS.findall(self.received) or b'"internal_error"' in self.received

    @property
    def codes(self) -> list[str]:
        """The error codes in it."""
        return [code.decode() for code in _CODE.findall(self.received)]

    @property
    def statuses(self) -> list[int]:
        """The statuses of all HTTP answers in it."""
        return [int(status) for status in _STATUS.findall(self.received)]


class Line(asyncio.Protocol):
    """A connection that keeps all that comes."""

    def __init__(self) -> None:
        self.came = bytearray()
        self.ended = False
        self._transport: asyncio.Transport | None = None
        self._changed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.came += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def write(self, data: bytes) -> None:
        """Send bytes, if anybody is there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def drop(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    async def changed(self, until: float) -> bool:
        """Wait until something comes; False if nothing has by a time of the loop."""
        self._changed = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(until):
                await self._changed
        except TimeoutError:
            return False
        return True

    async def until(self, enough: Enough, within_s: float = WITHIN_S) -> bool:
        """Wait until what has come is enough; False if the connection ended, or too long has passed."""
        ends = asyncio.get_running_loop().time() + within_s
        while not enough(self.came):
            if self.ended or not await self.changed(ends):
                return False
        return True

    async def quiet(self, for_s: float) -> None:
        """Wait until nothing has come for a while, or the connection has ended."""
        loop = asyncio.get_running_loop()
        while not self.ended and await self.changed(loop.time() + for_s):
            pass


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The header that carries a token, if there is one."""
    return () if token is None else (("Authorization", f"Bearer {token}"),)


def request(
    method: str | bytes, target: str | bytes, headers: Headers = (), body: bytes | None = None
) -> bytes:
    """A request as bytes; text is sent as UTF-8, whatever is in it."""
    lines = [b"%b %b HTTP/1.1" % (_raw(method), _raw(target)), b"Host: gateway.test"]
    lines += [b"%b: %b" % (_raw(name), _raw(value)) for name, value in headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body or b""))


def upgrade(target: str | bytes, headers: Headers = ()) -> bytes:
    """A request for a WebSocket."""
    asks = (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", _KEY),
    )
    return request("GET", target, (*asks, *headers))


def frame(text: str, opcode: int = _TEXT) -> bytes:
    """A client's frame, masked with zeros."""
    payload = text.encode("utf-8", "surrogatepass")
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size)) + bytes(4) + payload
    return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + bytes(4) + payload


def frames(data: Bytes, at: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """The whole frames of a server from a position on: opcode, payload, and where the next one begins."""
    while len(data) - at >= 2:
        opcode, length, start = data[at] & 0x0F, data[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if len(data) < start + length:
            return
        at = start + length
        yield opcode, bytes(data[start:at]), at


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


async def dial(port: int, line: Line, local: str | None = None) -> bool:
    """Connect; False if nobody answers."""
    loop = asyncio.get_running_loop()
    source = None if local is None else (local, 0)
    try:
        await loop.create_connection(lambda: line, "127.0.0.1", port, local_addr=source)
    except OSError:
        return False
    return True


async def ask(
    port: int,
    method: str | bytes,
    target: str | bytes,
    headers: Headers = (),
    body: bytes | None = None,
) -> Answer:
    """One HTTP request on a connection of its own."""
    sent, line = request(method, target, (*headers, ("Connection", "close")), body), Line()
    if await dial(port, line):
        line.write(sent)
        if await line.until(_streams):  # anything else ends the connection
            await line.quiet(_QUIET_S)
        line.drop()
    received = bytes(line.came)
    return Answer(any(200 <= status < 300 for status in map(int, _STATUS.findall(received))), sent, received)


async def knock(
    port: int,
    target: str | bytes,
    headers: Headers = (),
    *,
    local: str | None = None,
    quiet_s: float = _QUIET_S,
) -> Answer:
    """Ask for a WebSocket, and if it is granted, listen until nothing comes for a moment."""
    sent, line = upgrade(target, headers), Line()
    if await dial(port, line, local):
        line.write(sent)
        await line.until(_decided)
        if granted(line.came):
            await line.quiet(quiet_s)
        line.drop()
    return Answer(granted(line.came), sent, bytes(line.came))


def _streams(came: Bytes) -> bool:
    return b"text/event-stream" in came


def _decided(came: Bytes) -> bool:
    if not came.startswith(b"HTTP/1.1 101"):
        return False  # a refusal ends the connection
    return any(opcode == _CLOSE or _is_ack(payload) for opcode, payload, _ in frames(came, _body(came)))


def granted(came: Bytes) -> bool:
    """Whether a socket was opened."""
    return any(_is_ack(payload) for opcode, payload, _ in frames(came, _body(came)) if opcode == _TEXT)


def _body(came: Bytes) -> int:
    head = came.find(b"\r\n\r\n")
    return len(came) if head < 0 else head + 4


def _is_ack(payload: bytes) -> bool:
    return b'"type":"connection_ack"' in payload


async def throw(port: int, data: bytes, quiet_s: float = 0.15, within_s: float = 1.5) -> Answer:
    """Send bytes of any kind, and take what comes until it is quiet."""
    line = Line()
    if await dial(port, line):
        line.write(data)
        await line.until(bool, within_s)
        await line.quiet(quiet_s)
        line.drop()
    received = bytes(line.came)
    statuses = [int(status) for status in _STATUS.findall(received)]
    return Answer(granted(received) or any(200 <= status < 300 for status in statuses), data, received)


async def listen(port: int, target: str, headers: Headers = ()) -> Line:
    """Open an event stream that must be granted.

    Raises:
        AssertionError: it was not.
    """
    line = Line()
    assert await dial(port, line), "nobody answers"
    line.write(request("GET", target, headers))
    assert await line.until(_streams), f"not let in: {bytes(line.came)!r}"
    return line


class Talk(Line):
    """An open socket, on which messages are answered by their ``ref``.

    Attributes:
        messages: all that came.
        opened_with: the request.
        opened_as: what the connection_ack said.
        close_code: and when (by the loop's clock) the server closed it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []
        self._rest = b""
        self._upgraded = False
        self._refs = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self.opened_with = b""
        self.opened_as: dict[str, Any] = {}
        self.close_code: int | None = None
        self.closed_at = 0.0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._rest += data
        if not self._upgraded:
            if not self._rest.startswith(b"HTTP/1.1 101") or b"\r\n\r\n" not in self._rest:
                return
            self._rest, self._upgraded = self._rest.partition(b"\r\n\r\n")[2], True
        read_to = 0
        for opcode, payload, ends in frames(self._rest):
            read_to = ends
            self._on_frame(opcode, payload)
        self._rest = self._rest[read_to:]

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self.write(frame(payload.decode("latin-1"), _PONG))
        elif opcode == _CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.closed_at = asyncio.get_running_loop().time()
            self.write(frame("", _CLOSE))  # else the server waits for it
        elif opcode == _TEXT:
            message = json.loads(payload)
            self.messages.append(message)
            if message["type"] == "connection_ack":
                self.opened_as = message["data"]
            waiting = self._waiting.pop(message["data"].get("ref", -1), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(payload)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(b"")

    async def say(self, message: dict[str, Any]) -> Answer:
        """Send a message, and take its answer."""
        async with self._room:
            return await self._say(message)

    async def _say(self, message: dict[str, Any]) -> Answer:
        self._refs += 1
        ref = self._refs
        text = json.dumps({**message, "ref": ref})
        sent = self.opened_with + text.encode()
        if self.ended:
            return Answer(False, sent, b"")
        self._waiting[ref] = asyncio.get_running_loop().create_future()
        self.write(frame(text))
        try:
            async with asyncio.timeout(WITHIN_S):
                payload = await self._waiting[ref]
        except TimeoutError:
            payload = b""
        refused = not payload or b'"type":"error"' in payload
        return Answer(not refused, sent, payload)

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The messages of the session log."""
        return [message for message in self.messages if "seq" in message["metadata"]]


async def talk(port: int, target: str, headers: Sequence[tuple[str, str]] = ()) -> Talk:
    """Open a socket that must be granted.

    Raises:
        AssertionError: it was not.
    """
    line = Talk()
    assert await dial(port, line), "nobody answers"
    line.opened_with = upgrade(target, headers)
    line.write(line.opened_with)
    await line.until(_decided)
    assert granted(line.came), f"not let in: {bytes(line.came)!r}"
    return line
