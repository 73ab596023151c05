"""A proxy in front of Redis that can swallow what Redis pushes: connections stay up, commands work."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_MESSAGE = re.compile(rb">3\r\n\$(?:7|8)\r\ns?message\r\n\$(\d+)\r\n")
_INVALIDATE = re.compile(rb">2\r\n\$10\r\ninvalidate\r\n\*(\d+)\r\n")


def without_pushes(data: bytes) -> bytes:
    """Replies without the messages and invalidations that stand whole between them."""
    kept, at = b"", 0
    while at < len(data):
        message, invalidate = _MESSAGE.match(data, at), _INVALIDATE.match(data, at)
        if message is not None:
            at = _after_bulk(data, message.end() + int(message[1]) + 2)
        elif invalidate is not None:
            at = invalidate.end()
            for _ in range(int(invalidate[1])):
                at = _after_bulk(data, at)
        else:
            following = data.find(b"\r\n>", at)
            end = len(data) if following < 0 else following + 2
            kept += data[at:end]
            at = end
    return kept


def _after_bulk(data: bytes, at: int) -> int:
    length = int(data[at + 1 : data.index(b"\r\n", at)])
    return data.index(b"\r\n", at) + 2 + length + 2


class DeafProxy:
    """A context manager; relays to ``target_port`` on this machine.

    Attributes:
        deaf: while True, nothing that Redis pushes gets through.
        swallowed: how many bytes did not.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0
        self.deaf = False
        self.swallowed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # aborted transports close their sockets in the loop's next rounds

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._copy(reader, far_writer, pushes=False)),
            asyncio.create_task(self._copy(far_reader, writer, pushes=True)),
        ]
        try:
            with suppress(asyncio.CancelledError):  # streams complain of it in Python 3.11
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            far_writer.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, pushes: bool
    ) -> None:
        while data := await reader.read(65_536):
            if pushes and self.deaf:
                kept = without_pushes(data)
                self.swallowed += len(data) - len(kept)
                data = kept
            writer.write(data)
            await writer.drain()
