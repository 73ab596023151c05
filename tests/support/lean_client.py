"""A WebSocket client of a few lines, so that thousands of them cost a test little; server frames only."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from typing import cast

OnText = Callable[[bytes], None]

_OPEN = b"HTTP/1.1 101"


class LeanClient(asyncio.Protocol):
    """One socket.

    Args:
        path: with its query.
        on_text: gets every text message.

    Attributes:
        opened: set True by the server's 101, False by any other answer or a loss before it.
        lost: done when the connection is gone; its result is the close code (1006 if there was none).
    """

    def __init__(self, path: str, on_text: OnText) -> None:
        loop = asyncio.get_running_loop()
        self._path = path
        self._on_text = on_text
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._code = 1006
        self.answer = b""
        self.opened: asyncio.Future[bool] = loop.create_future()
        self.lost: asyncio.Future[int] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            self.answer = head
            self.opened.set_result(head.startswith(_OPEN))
        self._rest = self._frames(data)

    def _frames(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if len(data) < start + length:
                break
            self._frame(data[at] & 0x0F, data[start : start + length])
            at = start + length
        return data[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            self._on_text(payload)
        elif opcode == 8:
            self._code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.send(8, payload)
            self.drop()
        elif opcode == 9:
            self.send(10, payload)

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame of up to 64 KiB (masked with zeros, which leaves the payload as it is)."""
        short = len(payload) < 126
        size = bytes((0x80 | len(payload),)) if short else b"\xfe" + len(payload).to_bytes(2, "big")
        if self._transport is not None:
            self._transport.write(bytes((0x80 | opcode,)) + size + bytes(4) + payload)

    def send_text(self, text: str) -> None:
        """Send a text message."""
        self.send(1, text.encode())

    def drop(self) -> None:
        """Cut the connection, as a lost network does."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.opened.done():
            self.opened.set_result(False)
        if not self.lost.done():
            self.lost.set_result(self._code)


async def connect(port: int, path: str, on_text: OnText) -> LeanClient | None:
    """Open a socket; None if nobody answers or the answer is no."""
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_connection(lambda: LeanClient(path, on_text), "127.0.0.1", port)
    except OSError:
        return None
    opened = False
    try:
        opened = await client.opened
    finally:
        if not opened:
            client.drop()
    return client if opened else None
