"""One HTTP connection without a network: a clock turned by hand, and a transport that remembers."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from gateway.handshake import HandshakeError, parse
from gateway.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol, bounded_protocol

HEAD_TIMEOUT_S = 10.0
LONGEST_CHUNK = 8192
MOST_BODY_BYTES = 64 * 1024  # what the application takes of a body, like the product's read_body
MOST_HELD_BYTES = 2 * MAX_HEAD_BYTES + HIGH_WATER_LIMIT + 2 * LONGEST_CHUNK
_LATER_S = 60.0  # longer than every timeout of a connection
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\x20-\x7e]*")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\x20-\x7e\t]*)")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.mistakes: list[Any] = []
        self.set_exception_handler(lambda _loop, context: self.mistakes.append(context))

    def time(self) -> float:
        return self.now_s

    @property
    def busy(self) -> bool:
        """Something is to be run at once."""
        return bool(self._ready)  # type: ignore[attr-defined]  # asyncio's own


@functools.cache
def _loop() -> _Loop:
    loop = _Loop()
    atexit.register(loop.close)
    return loop


class _Transport(asyncio.Transport):
    """Takes all that is written at once, and nothing once it is closed, like a socket that keeps up."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__({"sockname": ("127.0.0.1", 8080), "peername": ("127.0.0.1", 50_000)})
        self._loop = loop
        self._protocol: asyncio.Protocol | None = None
        self.written = bytearray()
        self.paused = False
        self.closing = False

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += data

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self.get_protocol().connection_lost, None)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class _Socket(asyncio.Protocol):
    """Stands for the WebSocket that a connection becomes; it says nothing, so nobody else may either."""

    def __init__(self, **_uvicorn: Any) -> None:
        self.head: bytes | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._silent_from = len(transport.written)

    def data_received(self, data: bytes) -> None:
        if self.head is None:
            self.head = data
            try:
                parse(data)
            except HandshakeError:
                self._transport.close()

    def check(self) -> None:
        """Nothing of HTTP came after the upgrade."""
        assert self.head is not None, "an upgrade without its request"
        assert len(self._transport.written) == self._silent_from, "HTTP was written into a socket"


class _App:
    """A small application in one of four tempers; it remembers the methods that it was asked with."""

    def __init__(self, temper: int) -> None:
        self._answer = (self._reads, self._does_not_read, self._reads_late, self._is_slow)[temper % 4]
        self.methods: list[str] = []
        self.released = asyncio.Event()  # what a slow application waits for

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        assert all(isinstance(scope[name], str) for name in ("path", "method"))
        self.methods.append(scope["method"])
        await self._answer(receive, send)

    async def _reads(self, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more and size <= MOST_BODY_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        await _send(send, 413 if more else 200, b"size %d" % size)

    async def _does_not_read(self, _receive: Receive, send: Send) -> None:
        await _send(send, 200, b"read nothing")

    async def _reads_late(self, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await self._reads(receive, send)

    async def _is_slow(self, _receive: Receive, send: Send) -> None:
        await self.released.wait()
        await _send(send, 200, b"at last")


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"x-app", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Answer(NamedTuple):
    """One response as a client reads it; ``ours`` if it is the protocol's own and not the application's."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    ours: bool


def run(chunks: Iterable[bytes], temper: int) -> list[Answer]:
    """Feed a connection and let time pass; returns the answers.

    Args:
        chunks: what the client sends, each of at most `LONGEST_CHUNK` bytes.
        temper: which application answers.

    Raises:
        AssertionError: a promise of the protocol is broken.
    """
    loop = _loop()
    loop.mistakes.clear()
    return loop.run_until_complete(_run(loop, chunks, temper))


async def _run(loop: _Loop, chunks: Iterable[bytes], temper: int) -> list[Answer]:
    app, state, transport = _App(temper), ServerState(), _Transport(loop)
    protocol = _protocol(app, state, loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    try:
        await _feed(loop, protocol, transport, chunks)
        await _pass_time(loop, transport)
        waits = not transport.closing and not transport.paused and _waits_for_client(protocol)
        assert not waits, "it waits for the client for ever"
        app.released.set()
        await _pass_time(loop, transport)
        transport.close()
        await _turns(loop)
        assert not state.connections
        assert not state.tasks, "a request outlives its connection"
        assert protocol._head_timer is None
    finally:
        for task in state.tasks:
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
    assert not loop.mistakes, loop.mistakes
    if isinstance(socket := transport.get_protocol(), _Socket):
        socket.check()
    answers = list(read_answers(bytes(transport.written), app.methods))
    _check_answers(answers)
    return answers


def _protocol(app: _App, state: ServerState, loop: _Loop) -> BoundedHttpProtocol:
    config = _config()
    protocol = _connection_class()(config, state, {}, loop)
    protocol.app = app
    protocol.logger = _logger()
    return protocol


@functools.cache
def _connection_class() -> type[BoundedHttpProtocol]:
    return bounded_protocol(HEAD_TIMEOUT_S)


@functools.cache
def _config() -> uvicorn.Config:
    config = uvicorn.Config(
        _App(0),
        ws=_Socket,
        http=_connection_class(),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    config.load()
    return config


class _Complaint(logging.Handler):
    """uvicorn logs an exception of the application, or of its own, instead of raising it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            _loop().mistakes.append((record.getMessage(), record.exc_info))


@functools.cache
def _logger() -> logging.Logger:
    logger = logging.Logger("fuzz", logging.WARNING)
    logger.addHandler(_Complaint())
    return logger


async def _turns(loop: _Loop, most: int = 2000) -> None:
    """Let everybody have turns until all wait, or ``most`` each."""
    for _ in range(most):
        await asyncio.sleep(0)
        if not loop.busy:
            return


async def _feed(
    loop: _Loop, protocol: BoundedHttpProtocol, transport: _Transport, chunks: Iterable[bytes]
) -> None:
    for chunk in chunks:
        if transport.closing or transport.paused:
            break  # a client that is not listened to cannot make anything grow
        assert len(chunk) <= LONGEST_CHUNK
        transport.get_protocol().data_received(chunk)
        held = held_bytes(protocol)
        assert held <= MOST_HELD_BYTES, f"{held} bytes are held"
        await _turns(loop, 3)


async def _pass_time(loop: _Loop, transport: _Transport) -> None:
    """First the timeouts of a connection that waits, then those that begin when it answers."""
    for _ in range(2):
        await _turns(loop)
        loop.now_s += 0 if transport.closing else _LATER_S
        await _turns(loop)


def _waits_for_client(protocol: BoundedHttpProtocol) -> bool:
    """The next word is the client's, and belongs to a request's head."""
    return protocol._in_head and not isinstance(protocol.transport.get_protocol(), _Socket)


def held_bytes(protocol: BoundedHttpProtocol) -> int:
    """What a connection keeps of what the client said, as far as Python can see it."""
    cycles = [protocol.cycle, *(cycle for cycle, _ in protocol.pipeline)] if protocol.cycle else []
    heads = [protocol.headers or [], *(cycle.scope["headers"] for cycle in cycles)]
    distinct = {id(head): head for head in heads}.values()
    named = sum(len(name) + len(value) for head in distinct for name, value in head)
    return named + len(getattr(protocol, "url", b"")) + sum(len(cycle.body) for cycle in cycles)


def read_answers(written: bytes, methods: list[str]) -> Iterator[Answer]:
    """Read responses strictly.

    Args:
        methods: of the requests that the application was asked, in order.

    Raises:
        AssertionError: it is not a sequence of whole HTTP/1.1 responses.
    """
    asked = iter(methods)
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, f"a head without an end: {head[:80]!r}"
        first, *lines = head.split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(first)
        assert status_line is not None, f"not a status line: {first[:80]!r}"
        status = int(status_line[1])
        fields = [_HEADER_LINE.fullmatch(line) for line in lines]
        assert all(fields), f"not a header: {lines}"
        headers = {field[1].lower(): field[2] for field in fields if field}
        if status == 100:
            assert not headers
            continue
        assert len(headers) == len(lines), f"a header twice: {lines}"
        ours = b"x-app" not in headers
        length = int(headers[b"content-length"])
        if not ours and next(asked) == "HEAD":
            length = 0
        assert len(written) >= length, "a body is cut short"
        yield Answer(status, headers, written[:length], ours)
        written = written[length:]


def _check_answers(answers: list[Answer]) -> None:
    refusals = [answer for answer in answers if answer.ours]
    assert len(refusals) <= 1, f"refused {len(refusals)} times"
    if refusals:
        assert answers[-1] is refusals[0], "an answer behind the refusal"
        assert 400 <= refusals[0].status < 500, refusals[0]
        assert refusals[0].headers[b"connection"] == b"close"
