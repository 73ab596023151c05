"""A WebSocket client that sends right and wrong bytes alike (RFC 6455), and cases of what must come back.

Nothing here is shared with `gateway.frames`: a mistake there must not be made here as well.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
MASK = b"\x37\xfa\x21\x3d"
PATIENCE_S = 10.0
PAUSE_S = 0.002  # between two pieces, for the server to read them one by one

Frame = tuple[int, bytes]
"""The first byte and the payload of what the server sent."""


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    form: int | None = None,
    announced: int | None = None,
) -> bytes:
    """A client's frame, right or wrong.

    Args:
        mask: None for a frame that is not masked.
        form: the length's bytes: 0, 2 or 8; by itself the shortest form.
        announced: the length that the head says.
    """
    length = len(payload) if announced is None else announced
    if form is None:
        form = 0 if length < 126 else 2 if length < 65536 else 8
    first = FIN * fin | rsv << 4 | opcode
    second = (0x80 if mask is not None else 0) | {0: length & 0x7F, 2: 126, 8: 127}[form]
    head = bytes((first, second)) + (length.to_bytes(form, "big") if form else b"")
    return head + payload if mask is None else head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def fragments(opcode: int, parts: Iterable[bytes]) -> list[bytes]:
    """A message, one frame a part."""
    all_parts = list(parts)
    last = len(all_parts) - 1
    return [
        frame(CONTINUATION if number else opcode, part, fin=number == last)
        for number, part in enumerate(all_parts)
    ]


def close(code: int, reason: bytes = b"") -> bytes:
    """A client's Close."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


# One socket.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back.

    Attributes:
        frames: all that the server sent.
        end: ``eof``, ``reset``, or what was wrong with the bytes that came.
    """

    frames: list[Frame]
    end: str

    @property
    def close_code(self) -> int | None:
        """The server's; None if it sent no Close, or one without a code."""
        if not self.frames or self.frames[-1][0] != FIN | CLOSE or len(self.frames[-1][1]) < 2:
            return None
        return int.from_bytes(self.frames[-1][1][:2], "big")


def request(path: str) -> bytes:
    """The head of an upgrade request."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def connect(port: int) -> socket.socket:
    """A TCP connection that sends each piece by itself."""
    plain = socket.socket()
    plain.setblocking(False)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    return plain


async def upgrade(plain: socket.socket, path: str) -> bytes:
    """Make a connection a WebSocket; returns what came behind the 101."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(plain, request(path))
    answer = b""
    async with asyncio.timeout(PATIENCE_S):
        while b"\r\n\r\n" not in answer:
            part = await loop.sock_recv(plain, 65536)
            assert part, f"closed before the 101: {answer!r}"
            answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return rest


async def send(plain: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send pieces, with a pause between two, until all are sent or the server has closed."""
    loop = asyncio.get_running_loop()
    for piece in pieces:
        try:
            await loop.sock_sendall(plain, piece)
        except OSError:
            return
        await asyncio.sleep(PAUSE_S)


async def read_bytes(plain: socket.socket) -> tuple[bytes, str]:
    """Read until the server ends the connection; returns what came, and how it ended (see `Outcome`)."""
    loop = asyncio.get_running_loop()
    came, end = [], "eof"
    try:
        async with asyncio.timeout(PATIENCE_S):
            while part := await loop.sock_recv(plain, 1 << 18):
                came.append(part)
    except TimeoutError:
        end = f"not closed within {PATIENCE_S:g} s"
    except ConnectionError:
        end = "reset"
    return b"".join(came), end


async def read_all(plain: socket.socket, begun: bytes) -> Outcome:
    """Read frames until the server ends the connection."""
    came, end = await read_bytes(plain)
    try:
        return Outcome(list(server_frames(begun + came)), end)
    except ValueError as error:
        return Outcome([], str(error))


def server_frames(data: bytes) -> Iterator[Frame]:
    """Read a server's frames; strictly.

    Raises:
        ValueError: the bytes are none that a server may send.
    """
    at = 0
    while at < len(data):
        first, length, start = data[at], int.from_bytes(data[at + 1 : at + 2], "big"), at + 2
        if length >= 126:
            form = 2 if length == 126 else 8
            length, start = int.from_bytes(data[start : start + form], "big"), start + form
            if length < (126 if form == 2 else 65536):
                raise ValueError("the server sent a length in a long form, or masked")
        if first not in (FIN | TEXT, FIN | PING, FIN | PONG, FIN | CLOSE) or len(data) < start + length:
            raise ValueError(f"the server sent what is no frame: {data[at : at + 20]!r}")
        yield first, data[start : start + length]
        at = start + length


async def play(port: int, path: str, pieces: Iterable[bytes]) -> Outcome:
    """Open a socket, send pieces, and read until the server ends it."""
    with await connect(port) as plain:
        reading = asyncio.create_task(read_all(plain, await upgrade(plain, path)))
        await send(plain, pieces)
        return await reading


# One case.


@dataclass(frozen=True, slots=True)
class Case:
    """What a client sends, and what must come back.

    Attributes:
        name: begins with its number.
        sent: one item a frame.
        answers: what must come back before the server's Close.
        code: of the server's Close.
        answered: the server's Close answers the client's, rather than telling of a mistake.
        unread: the server need not read all that is sent, so its system may reset the connection.
    """

    name: str
    sent: tuple[bytes, ...]
    answers: tuple[Frame, ...]
    code: int
    answered: bool
    unread: bool

    @property
    def section(self) -> str:
        """The first part of its number."""
        return self.name.partition(".")[0]

    def cuts(self) -> Iterator[tuple[str, list[bytes]]]:
        """The ways to send it: name and pieces."""
        whole = b"".join(self.sent)
        yield "whole", [whole]
        if 1 < len(self.sent) <= 100:
            yield "frames", list(self.sent)
        size = 1 if len(whole) <= 1_000 else max(997, len(whole) // 300 | 1)
        yield f"pieces of {size}", [whole[at : at + size] for at in range(0, len(whole), size)]

    def fault(self, outcome: Outcome) -> str | None:
        """What is wrong with what came back; None if nothing."""
        if outcome.end != "eof" and not (self.unread and outcome.end == "reset"):
            return outcome.end
        if outcome.close_code != self.code:
            return f"closed with {outcome.close_code}, not {self.code}"
        *answers, (_, last) = outcome.frames
        if tuple(answers) != self.answers:
            return f"{_shown(answers)} came back, not {_shown(self.answers)}"
        reason = last[2:].decode("utf-8", "replace")
        if "\ufffd" in reason or (self.answered and reason):
            return f"the server's Close has the reason {reason!r}"
        return None


def _shown(frames: Iterable[Frame]) -> str:
    return "[" + ", ".join(f"{first:02x} {data[:20]!r} ({len(data)})" for first, data in frames) + "]"
