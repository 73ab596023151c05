"""What a terminal client does: [P] pure; it is told of messages, lost connections and the time.

`ChatState` is all the judgement; `gateway.chat_client` carries out what it says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from backplane.position import Position
from gateway.close_codes import CloseCode

ANSWERED, FAILED, UNANSWERED, INTERRUPTED = 0, 1, 2, 130  # exit statuses

_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 0.25, 10.0
_STEADY_S = 10.0  # a connection that lasted so long has ended the trouble before it
_LONGEST_WAIT_S = 300.0
_NO_CODE, ABNORMAL = 1005, 1006  # a Close frame without a code, and none at all
_RATE_LIMIT = 4029
_COME_BACK = {  # code -> why, and the least seconds to wait
    CloseCode.GOING_AWAY: ("the server goes away", 0.0),
    _NO_CODE: ("the connection was ended", 0.0),
    ABNORMAL: ("the connection is lost", 0.0),
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
