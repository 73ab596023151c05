"""A terminal client: talks to an agent over a session's socket, and comes back by itself."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, TextIO
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from gateway.chat_state import (
    ABNORMAL,
    ANSWERED,
    INTERRUPTED,
    UNANSWERED,
    ChatState,
    Do,
    EndLine,
    Message,
    Reconnect,
    Send,
    Show,
    Stop,
)

_LARGEST_BYTES = 128 * 1024 * 1024  # more than any CALLBACK_MAX_BYTES


def socket_url(
    url: str,
    session_id: str,
    *,
    tenant_id: str | None = None,
    tenant_tier: str | None = None,
    agent_id: str | None = None,
    cursor: str | None = None,
) -> str:
    """The address of a session's socket; what is None is left out.

    Raises:
        ValueError: ``url`` is no ``ws://``, ``wss://``, ``http://`` or ``https://`` address.
    """
    parts = urlsplit(url)
    scheme = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"{url!r} must be like ws://host:port (or wss://, http://, https://)")
    named = {"tenant_id": tenant_id, "tenant_tier": tenant_tier, "agent_id": agent_id, "cursor": cursor}
    query = urlencode({"stream": "1", **{name: value for name, value in named.items() if value is not None}})
    path = f"{parts.path.rstrip('/')}/ws/{quote(session_id, safe='')}"
    return f"{scheme}://{parts.netloc}{path}?{query}"


class _Printer:
    """Writes to a terminal, or without colours to anything else."""

    _STYLES: ClassVar = {"plain": "", "dim": "\x1b[2m", "error": "\x1b[31m"}
    _CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # an answer must not steer the terminal

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty()
        self._encoding = out.encoding or "utf-8"
        self._open = ""

    def show(self, show: Show) -> None:
        """Print a line, or a piece of one."""
        if self._open != show.open:
            self.end_line()
        text = self._CONTROL.sub("", show.text).encode(self._encoding, "replace").decode(self._encoding)
        style = self._STYLES[show.style] if self._colours else ""
        self._out.write(f"{style}{text}\x1b[0m" if style else text)
        if not show.open:
            self._out.write("\n")
        self._open = show.open
        self._out.flush()

    def end_line(self) -> None:
        """End the line that is open, if one is."""
        if self._open:
            self._open = ""
            self._out.write("\n")
            self._out.flush()


class _Client:
    """Carries out what `ChatState` says."""

    def __init__(
        self, state: ChatState, address: Callable[[str | None], str], token: str | None, out: TextIO
    ) -> None:
        self._state = state
        self._address = address
        self._headers = {} if token is None else {"Authorization": f"Bearer {token.strip()}"}
        self._printer = _Printer(out)
        self._socket: ClientConnection | None = None
        self._wait_s = 0.0
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, message: str | None, timeout_s: float) -> int:
        """Talk until the end; returns the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._end, ANSWERED if message is None else INTERRUPTED)
        tasks = [
            asyncio.create_task(self._stay_connected()),
            asyncio.create_task(self._talk(message, timeout_s)),
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        try:
            return await self._ended
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self._printer.end_line()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._ended.done():
            self._ended.set_exception(error)

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    async def _do(self, todo: list[Do]) -> None:
        for do in todo:
            match do:
                case Show():
                    self._printer.show(do)
                case EndLine():
                    self._printer.end_line()
                case Send(message):
                    if self._socket is not None:
                        with suppress(ConnectionClosed):  # whoever reads the socket notices, too
                            await self._socket.send(msgspec.json.encode(message).decode())
                case Reconnect(after_s):
                    self._wait_s = after_s
                case Stop(status):
                    self._end(status)

    # What the user says.

    async def _talk(self, message: str | None, timeout_s: float) -> None:
        if message is not None:
            await self._do(self._state.say(message, uuid4().hex))
        else:
            if sys.stdin.isatty():
                await self._do([Show("Type a message and Enter; Ctrl-D ends.", "dim")])
            lines = _lines(sys.stdin)
            while (line := await lines.get()) is not None:
                if line.strip():
                    await self._do(self._state.say(line.strip(), uuid4().hex))
            await self._do(self._state.leave())
        await asyncio.sleep(timeout_s)
        await self._do([Show(f"There is no answer after {timeout_s:g} s.", "error"), Stop(UNANSWERED)])

    # What the server says.

    async def _stay_connected(self) -> None:
        while not self._ended.done():
            await self._do(await self._connection())
            await asyncio.sleep(self._wait_s)

    async def _connection(self) -> list[Do]:
        """One connection's life; returns what to do after it."""
        state, address = self._state, self._address(self._state.cursor)
        try:
            socket = await connect(
                address, additional_headers=self._headers, max_size=_LARGEST_BYTES, close_timeout=1
            )
        except InvalidStatus as error:
            response = error.response
            return state.refused(
                response.status_code, response.headers.get("Retry-After"), _detail(response.body)
            )
        except (OSError, InvalidHandshake) as error:  # TimeoutError is an OSError
            return state.unreachable(str(error) or type(error).__name__)
        self._socket = socket
        try:
            await self._read(socket)
        finally:
            self._socket = None
            await socket.close()
        return state.closed(socket.close_code or ABNORMAL, socket.close_reason or "", time.monotonic())

    async def _read(self, socket: ClientConnection) -> None:
        """Read until the connection ends, or until it is time to change it for another."""
        with suppress(ConnectionClosed, TimeoutError):
            while True:
                async with asyncio.timeout(self._state.move_in(time.monotonic())):
                    frame = await socket.recv()
                try:
                    message = msgspec.json.decode(frame, type=Message)
                except msgspec.MsgspecError:
                    await self._do([Show("The server sent something that cannot be read.", "error")])
                else:
                    await self._do(self._state.received(message, time.monotonic()))


def _lines(file: TextIO) -> asyncio.Queue[str | None]:
    """The lines of a file as they come, then None.

    They are read by a daemon thread: a terminal's reading cannot be cancelled, and asyncio's pipes take no
    regular files.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            for line in file:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _detail(body: bytes | bytearray) -> str:
    """What a problem document says."""
    with suppress(msgspec.MsgspecError):
        problem = msgspec.json.decode(body, type=Message)
        return str(problem.get("detail", ""))
    return ""


async def run_chat(
    url: str,
    *,
    token: str | None,
    tenant_id: str | None,
    tenant_tier: str | None,
    session_id: str,
    agent_id: str,
    message: str | None,
    timeout_s: float = 60,
    out: TextIO,
) -> int:
    """Say ``message`` and print what the agent answers; without one, talk until stdin or Ctrl-C ends it.

    Args:
        url: of the service, ``ws://host:port`` or ``http://host:port``.
        timeout_s: how long to wait for the answer; at the end of stdin, for those that are still due.

    Returns:
        The exit status: 0 answered, 1 the agent's task ended in an error, 2 there was no answer (refused, bad
        request, or none in time), 130 interrupted while waiting for it.
    """

    def address(cursor: str | None) -> str:
        return socket_url(
            url, session_id, tenant_id=tenant_id, tenant_tier=tenant_tier, agent_id=agent_id, cursor=cursor
        )

    try:
        address(None)
    except ValueError as error:
        _Printer(out).show(Show(str(error), "error"))
        return UNANSWERED
    state = ChatState(agent_id, leaving=message is not None)
    return await _Client(state, address, token, out).run(message, timeout_s)
