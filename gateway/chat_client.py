"""A terminal client: talks to an agent over a session's socket, and comes back by itself.

`ChatState` is all the judgement, and pure: it is told of messages, lost connections and the time, and returns
what to do. `run_chat` and what follows it only carry that out.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple, TextIO
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from backplane.position import Position
from gateway.close_codes import CloseCode

ANSWERED, FAILED, UNANSWERED, INTERRUPTED = 0, 1, 2, 130  # exit statuses

_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 0.25, 10.0
_STEADY_S = 10.0  # a connection that lasted so long has ended the trouble before it
_LONGEST_WAIT_S = 300.0
_NO_CODE, _ABNORMAL = 1005, 1006  # a Close frame without a code, and none at all
_RATE_LIMIT = 4029
_COME_BACK = {  # code -> why, and the least seconds to wait
    CloseCode.GOING_AWAY: ("the server goes away", 0.0),
    _NO_CODE: ("the connection was ended", 0.0),
    _ABNORMAL: ("the connection is lost", 0.0),
    1011: ("the server made a mistake", 1.0),
    CloseCode.RESTART: ("the server restarts", 0.0),
    CloseCode.TRY_LATER: ("the server is busy", 1.0),
    CloseCode.SLOW_CONSUMER: ("this client read too slowly", 0.0),
    CloseCode.HEARTBEAT_MISSED: ("a heartbeat was missed", 0.0),
    _RATE_LIMIT: ("too many messages", 5.0),
}
_STAY_AWAY = {
    CloseCode.REPLACED: "A newer connection of this session took over.",
    CloseCode.BAD_TOKEN: "The token is missing, not valid or expired; get a new one.",
    CloseCode.FORBIDDEN: "The token does not allow this.",
    CloseCode.BAD_REQUEST: "The server does not accept this session, tenant, tier, agent or cursor.",
    CloseCode.BAD_FRAME: "The server does not accept messages of this size or kind.",
}
_LARGEST_BYTES = 128 * 1024 * 1024  # more than any CALLBACK_MAX_BYTES
_TEMPORARY_STATUSES = frozenset({429, 502, 503, 504})

Message = dict[str, Any]


# What to do.


class Show(NamedTuple):
    """Print a line; with ``open`` only a piece of one, which later pieces of the same name go on."""

    text: str
    style: Literal["plain", "dim", "error"] = "plain"
    open: str = ""


class EndLine(NamedTuple):
    """End a line that pieces were printed of."""


class Send(NamedTuple):
    """Send a message on the socket."""

    message: Message


class Reconnect(NamedTuple):
    """Connect (again), with the cursor, after a while."""

    after_s: float


class Stop(NamedTuple):
    """End with an exit status."""

    status: int


Do = Show | EndLine | Send | Reconnect | Stop


class _Received(NamedTuple):
    """A message's ``data``, the task that it is about, and when it came (seconds of any clock)."""

    data: Message
    task_id: str
    now: float


class _Chat(msgspec.Struct):
    """A message that was not answered to the end yet; ``task_id`` is None until its ack."""

    frame: Message
    task_id: str | None = None


class _Stream(msgspec.Struct):
    """The answer that is being shown piece by piece, as far as it was."""

    task_id: str
    attempt: int = 1
    text: str = ""


class ChatState:
    """One conversation, over any number of connections.

    Args:
        agent_id: to whom messages go.
        leaving: end as soon as everything that was said is answered.
        jitter: a random number from 0 to 1.
    """

    def __init__(self, agent_id: str, *, leaving: bool, jitter: Callable[[], float] = random.random) -> None:
        self._agent_id = agent_id
        self._leaving = leaving
        self._jitter = jitter
        self._status = ANSWERED
        self._position: Position | None = None
        self._start: str | None = None
        self._connected = False
        self._up_since = 0.0
        self._failures = 0
        self._return_at: float | None = None
        self._chats: dict[str, _Chat] = {}
        self._ended: dict[str, int] = {}  # tasks that ended while an ack was still due, and how
        self._stream: _Stream | None = None
        self._handlers: dict[str, Callable[[_Received], list[Do]]] = {
            "connection_ack": self._on_connection_ack,
            "ack": self._on_ack,
            "agent_chunk": self._on_chunk,
            "agent_response": self._on_response,
            "error": self._on_error,
            "task_update": self._on_task_update,
            "event": self._on_event,
            "reconnect": self._on_reconnect,
            "ping": self._on_ping,
        }

    @property
    def cursor(self) -> str | None:
        """Where to resume: behind the last message, or where the first connection began."""
        return self._start if self._position is None else str(self._position)

    # From the user.

    def say(self, message: str, ref: str) -> list[Do]:
        """A chat message; ``ref`` must be new. While there is no connection it waits for one."""
        frame = {"type": "chat", "ref": ref, "client_message_id": ref}
        self._chats[ref] = _Chat({**frame, "message": message, "agent_id": self._agent_id})
        return [Send(self._chats[ref].frame)] if self._connected else []

    def leave(self) -> list[Do]:
        """Nothing more will be said: end when all is answered."""
        self._leaving = True
        return self._leave_if_done()

    # From the connection.

    def received(self, message: Message, now: float) -> list[Do]:
        """A message of the server; one that is already known is passed over."""
        data = message.get("data")
        data = data if isinstance(data, dict) else {}
        if not self._is_new(message.get("metadata")):
            return []
        handle = self._handlers.get(str(message.get("type")))
        task_id = message.get("task_id") or data.get("task_id")
        return [] if handle is None else handle(_Received(data, str(task_id), now))

    def move_in(self, now: float) -> float | None:
        """Seconds until the connection has to be changed for another, as the server asked; None for never."""
        return None if self._return_at is None else max(0.0, self._return_at - now)

    def closed(self, code: int, reason: str, now: float) -> list[Do]:
        """The connection has ended with a close code."""
        self._connected = False
        if now - self._up_since >= _STEADY_S:
            self._failures = 0
        wait_s, self._return_at = self.move_in(now), None
        if code in _STAY_AWAY:
            return [Show(f"{_STAY_AWAY[CloseCode(code)]} ({code})", "error"), Stop(UNANSWERED)]
        if wait_s is not None:
            return self._come_back("the server asks to connect anew", wait_s)
        if code in _COME_BACK:
            why, least_s = _COME_BACK[code]
            return self._come_back(f"{why} ({code})", least_s)
        if code == CloseCode.DONE and not self._chats:
            return [Show("The server ended the conversation.", "dim"), Stop(self._status)]
        said = f": {reason}" if reason else ""
        return [Show(f"The server ended the connection with code {code}{said}.", "error"), Stop(UNANSWERED)]

    def refused(self, status: int, retry_after: str | None, detail: str) -> list[Do]:
        """The upgrade request was answered with an HTTP error."""
        why = f"HTTP {status}" + (f", {detail}" if detail else "")
        if status not in _TEMPORARY_STATUSES:
            return [Show(f"The server refuses the connection: {why}", "error"), Stop(UNANSWERED)]
        least_s = float(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
        return self._come_back(f"the server cannot take this connection now ({why})", least_s)

    def unreachable(self, why: str) -> list[Do]:
        """There was no answer to the upgrade request."""
        return self._come_back(f"the server cannot be reached ({why})", 0.0)

    def _come_back(self, why: str, least_s: float) -> list[Do]:
        backoff_s = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2 ** min(self._failures, 10))
        self._failures += 1
        wait_s = min(least_s, _LONGEST_WAIT_S) + backoff_s * (0.5 + 0.5 * self._jitter())
        return [Show(f"{why[0].upper()}{why[1:]}; trying again in {wait_s:.1f} s.", "dim"), Reconnect(wait_s)]

    # Messages.

    def _is_new(self, metadata: object) -> bool:
        """Whether a message is in no log, or follows what is known; takes note of its position."""
        if not isinstance(metadata, dict):
            return True
        epoch, seq = metadata.get("epoch"), metadata.get("seq")
        if not isinstance(epoch, str) or not isinstance(seq, int):
            return True
        known = self._position
        if known is not None and known.epoch == epoch and seq <= known.seq:
            return False
        self._position = Position(epoch, seq)
        return True

    def _on_connection_ack(self, got: _Received) -> list[Do]:
        todo: list[Do] = []
        if self._start is None and isinstance(got.data.get("cursor"), str):
            self._start = got.data["cursor"]
        resume = got.data.get("resume")
        if isinstance(resume, dict) and resume.get("status") == "reset":
            todo.append(Show("Some older messages are no longer kept; what is left follows.", "dim"))
        self._connected, self._up_since = True, got.now
        # Those without an ack may have been lost with the connection, or only their ack: they are sent again
        # under the id by which the server can know them. After an ack, sending again would ask twice.
        return todo + [Send(chat.frame) for chat in self._chats.values() if chat.task_id is None]

    def _on_ack(self, got: _Received) -> list[Do]:
        ref, task_id = str(got.data.get("ref")), got.data.get("task_id")
        if ref not in self._chats or not isinstance(task_id, str):
            return []
        self._chats[ref].task_id = task_id
        if task_id in self._ended:  # the answer was quicker than the ack
            return self._settle(ref, self._ended[task_id])
        self._forget_ended()
        return []

    def _on_error(self, got: _Received) -> list[Do]:
        show = Show(f"Error: {got.data.get('error') or got.data.get('error_code') or 'unknown'}", "error")
        chat = self._chats.get(ref := str(got.data.get("ref")))
        if chat is not None and chat.task_id is None:
            return [show, *self._settle(ref, UNANSWERED)]
        self._end_stream(got.task_id)
        return [show, *self._end_task(got.task_id, FAILED)]

    def _end_task(self, task_id: str, status: int) -> list[Do]:
        for ref, chat in self._chats.items():
            if chat.task_id == task_id:
                return self._settle(ref, status)
        self._ended[task_id] = status
        self._forget_ended()
        return []

    def _settle(self, ref: str, status: int) -> list[Do]:
        del self._chats[ref]
        self._status = max(self._status, status)
        self._forget_ended()
        return self._leave_if_done()

    def _forget_ended(self) -> None:
        if all(chat.task_id is not None for chat in self._chats.values()):
            self._ended.clear()

    def _leave_if_done(self) -> list[Do]:
        return [Stop(self._status)] if self._leaving and not self._chats else []

    def _on_chunk(self, got: _Received) -> list[Do]:
        delta, offset, attempt = got.data.get("delta"), got.data.get("offset"), got.data.get("attempt", 1)
        if not isinstance(delta, str) or not isinstance(offset, int) or not isinstance(attempt, int):
            return []
        if got.data.get("part", "text") != "text":  # the reasoning is not the answer
            return []
        stream = self._stream = self._stream or _Stream(got.task_id, attempt)
        if stream.task_id != got.task_id:  # two that grow at once cannot be read; this one will come whole
            return []
        todo: list[Do] = []
        if attempt > stream.attempt:
            if stream.text:
                todo.append(Show("The agent begins again.", "dim"))
            stream.attempt, stream.text = attempt, ""
        # A hole is left to the whole answer that follows; what is known is not shown twice.
        fresh = delta[len(stream.text) - offset :] if offset <= len(stream.text) else ""
        if attempt == stream.attempt and fresh:
            stream.text += fresh
            todo.append(Show(fresh, open=got.task_id))
        return todo

    def _on_response(self, got: _Received) -> list[Do]:
        response = str(got.data.get("response", ""))
        streamed = self._end_stream(got.task_id)
        todo: list[Do] = [Show(response)]
        if streamed and response.startswith(streamed):
            rest = response[len(streamed) :]
            todo = [Show(rest, open=got.task_id), EndLine()] if rest else [EndLine()]
        return [*todo, *self._end_task(got.task_id, ANSWERED)]

    def _end_stream(self, task_id: str) -> str:
        """What was shown of a task that ends."""
        if self._stream is None or self._stream.task_id != task_id:
            return ""
        text, self._stream = self._stream.text, None
        return text

    def _on_task_update(self, got: _Received) -> list[Do]:
        return [Show(_progress_line(got.data), "dim")]

    def _on_event(self, got: _Received) -> list[Do]:
        payload = msgspec.json.encode(got.data.get("payload")).decode()
        return [Show(f"event {got.data.get('topic')}: {payload}", "dim")]

    def _on_reconnect(self, got: _Received) -> list[Do]:
        after_ms = got.data.get("after_ms")
        wait_s = after_ms / 1000 if isinstance(after_ms, int | float) else 0.0
        self._return_at = got.now + min(max(wait_s, 0.0), _LONGEST_WAIT_S)
        return []

    def _on_ping(self, _: _Received) -> list[Do]:
        return [Send({"type": "pong"})]


def _progress_line(data: Message) -> str:
    progress, tool = data.get("progress"), data.get("tool")
    parts = [data.get("step"), data.get("message"), tool.get("name") if isinstance(tool, dict) else None]
    line = ": ".join(str(part) for part in parts if part) or str(data.get("status", "working"))
    return f"… {line} ({progress:.0%})" if isinstance(progress, int | float) else f"… {line}"


# The shell around it.


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
        return state.closed(socket.close_code or _ABNORMAL, socket.close_reason or "", time.monotonic())

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
