"""What the encoders share: [P] which of our messages says what, and how an answer grows.

Both other protocols cut an answer into blocks that are begun, appended to and ended. A tool call ends the
block before it, so that what the agent said before and after the call stands before and after it; text ends
the reasoning before it. Neither protocol can take back a character: an attempt that replaces another one, and
a response that is not what was streamed, first withdraw what was told, in the protocol's own way. A response
that was not streamed is an attempt of its own, so that nothing that was withdrawn has its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from backplane.errors import InvalidCursor
from backplane.position import parse_cursor
from gateway.encoders import fields
from gateway.encoders.event_id import EventId
from gateway.encoders.ledger import FINAL, PARTS, Ledger, News, PartName, Task

Data = Mapping[str, Any]


# By name: bound methods would hold the encoder, and each stream leave one to the garbage collector.
_OF_TASKS = {
    "agent_chunk": "_chunk",
    "agent_response": "_response",
    "input_required": "_input_required",
    "task_update": "_task_update",
    "typing_indicator": "_typing",
    "user_message": "_user_message",
}
_OF_THE_SESSION = {
    "connection_ack": "_greeted",
    "error": "_trouble",
    "event": "_event",
    "reconnect": "_reconnect",
}


class BaseEncoder(ABC):
    """Reads our messages; what is said to the client is the subclass's.

    Args:
        task_id: the one task that the stream is about; None for all of the session.
        resume: what the client has; None for nothing.
        here: whether blocks that the client has open go on without being opened again.
        replays: it is first told what was said before it came, up to `caught_up`: of a question among that it
            is not known yet whether it has been answered.
        given_up: ids of questions to which the client has no answer.
    """

    name: ClassVar[str]
    media_type: ClassVar[str]
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        task_id: str | None,
        resume: EventId | None,
        *,
        here: bool,
        replays: bool = False,
        given_up: Collection[str] = (),
    ) -> None:
        self.done = False
        self._only = task_id
        self._replays = replays
        self._given_up = given_up
        self._ledger = Ledger(resume, here=here)

    def encode(self, message: Mapping[str, Any], position: str | None) -> bytes:
        """See `gateway.encoders.encoder.Encoder`."""
        if self.done:
            return b""
        if self._ledger.begin(position):
            self._read(message)
        else:
            self._ledger.remember(message)
        return self._ledger.end()

    def caught_up(self) -> bytes:
        """See `gateway.encoders.encoder.Encoder`."""
        if self.done or not self._replays:
            return b""
        self._replays = False
        self._ledger.begin(None)
        if waiting := [task for task in self._ledger.tasks.values() if task.waiting is not None]:
            self._ask(waiting)
        return self._ledger.end()

    def _read(self, message: Mapping[str, Any]) -> None:
        kind, data, task_id = fields.text(message.get("type")), fields.mapping(message.get("data")), None
        if kind in _OF_TASKS or (kind == "error" and isinstance(data.get("status"), str)):
            task_id = fields.task_id(message)
        if task_id is not None:
            if self._only is None or task_id == self._only:
                getattr(self, _OF_TASKS.get(kind, "_failure"))(task_id, data)
        elif kind in _OF_THE_SESSION:
            getattr(self, _OF_THE_SESSION[kind])(data)

    # How an answer grows.

    def _chunk(self, task_id: str, data: Data) -> None:
        name, delta = data.get("part", "text"), data.get("delta")
        if name not in PARTS or not isinstance(delta, str):
            return
        known, asked = self._ledger.tasks.get(task_id), None
        # Of before what the agent asked: the log and what was said come each in its order, until all is told.
        if known is not None and (self._replays or data.get("snapshot") is True):
            asked, known.waiting = known.waiting, None
        task = self._begin(task_id)
        if task is None:
            return
        self._grow(task, name, delta, data)
        if asked is not None:
            self._wait(task, asked)

    def _grow(self, task: Task, name: PartName, delta: str, data: Data) -> None:
        attempt = fields.whole(data.get("attempt"), task.attempt)
        if attempt < task.attempt:
            return
        if attempt > task.attempt:
            self._begin_attempt(task, attempt)
        stream = task.part(name)
        snapshot = data.get("snapshot") is True
        if snapshot and len(delta) >= stream.chars and not stream.agrees(delta):
            self._withdraw(task, (name,))
        offset = 0 if snapshot else fields.whole(data.get("offset"), stream.chars)
        self._say(task, name, stream.lacks(delta, offset))

    def _begin_attempt(self, task: Task, attempt: int) -> None:
        told = [name for name in PARTS if task.part(name).blocks]
        if told:
            self._withdraw(task, tuple(told), attempt)
        else:
            task.begin_attempt(attempt)

    def _say(self, task: Task, name: PartName, piece: str) -> None:
        if not piece:
            return
        if name == "text":
            self._end_block(task, "reasoning")
        stream = task.part(name)
        if not stream.open:
            stream.begin_block()
            self._block_begins(task, name)
        elif not stream.here:
            stream.here = True
            self._block_begins(task, name)
        stream.add(piece)
        self._block_grows(task, name, piece)

    def _end_block(self, task: Task, name: PartName) -> None:
        stream = task.part(name)
        if not stream.open:
            return
        if not stream.here:
            self._block_begins(task, name)
        stream.end_block()
        self._block_ends(task, name)

    def _end_blocks(self, task: Task) -> None:
        for name in ("reasoning", "text"):
            self._end_block(task, name)

    def _complete(self, task: Task, response: object) -> None:
        """Tell what the client lacks of the whole answer; one that is no text leaves what was streamed."""
        self._end_block(task, "reasoning")
        if isinstance(response, str):
            if not task.text.agrees(response):
                self._withdraw(task, ("text",), FINAL)
            elif not (task.text.chars or task.text.open):
                task.begin_attempt(FINAL)
            self._say(task, "text", task.text.lacks(response, 0))
        self._end_block(task, "text")

    def _input_required(self, task_id: str, data: Data) -> None:
        task = self._begin(task_id)
        if task is not None and fields.text(data.get("input_id")) not in self._given_up:
            self._wait(task, data)

    def _wait(self, task: Task, asked: Data) -> None:
        task.waiting = asked
        if not self._replays:
            self._ask([task])

    def _greeted(self, data: Data) -> None:
        cursor = fields.text(data.get("cursor"))
        resume = fields.mapping(data.get("resume"))
        with suppress(InvalidCursor):  # then events have no id until a message of the log has come
            self._ledger.start_at(parse_cursor(cursor or f"{resume.get('epoch')}:{resume.get('from')}"))
        if resume.get("status") == "reset":
            active = data.get("active_tasks")
            tasks = active if isinstance(active, list) else []
            self._ledger.forget_all_but({fields.text(fields.mapping(task).get("task_id")) for task in tasks})
            self._reset(resume)

    def _typing(self, task_id: str, data: Data) -> None:
        self._begin(task_id)

    def _task_update(self, task_id: str, data: Data) -> None:
        task = self._ledger.tasks.get(task_id)
        if task is not None and task.still_waits(data):
            return
        task = self._begin(task_id)
        if task is None:
            return
        report = fields.tool_report(data)
        news = None if report is None else task.note(report)
        if report is None or news is None:
            self._progress(task, data)
            return
        if news.new and task.may_split:
            self._end_blocks(task)
        self._progress(task, {name: value for name, value in data.items() if name != "tool"})
        self._tool(task, report, news)

    # What the other protocol says.

    @abstractmethod
    def finish(self) -> bytes:
        """See `gateway.encoders.encoder.Encoder`."""

    @abstractmethod
    def _begin(self, task_id: str) -> Task | None:
        """Something comes of a task: it has begun, or goes on; None if it is not to be told."""

    @abstractmethod
    def _block_begins(self, task: Task, name: PartName) -> None:
        """The last block of ``task.part(name)`` is open now."""

    @abstractmethod
    def _block_grows(self, task: Task, name: PartName, piece: str) -> None: ...

    @abstractmethod
    def _block_ends(self, task: Task, name: PartName) -> None: ...

    @abstractmethod
    def _withdraw(self, task: Task, names: tuple[PartName, ...], attempt: int | None = None) -> None:
        """What the client has of these parts does not count; with ``attempt``, that one begins.

        The client may not have been told all of it when the connection breaks: what the client has may be
        changed only before the last event.
        """

    @abstractmethod
    def _progress(self, task: Task, update: Data) -> None: ...

    @abstractmethod
    def _tool(self, task: Task, report: fields.ToolReport, news: News) -> None: ...

    @abstractmethod
    def _user_message(self, task_id: str, data: Data) -> None: ...

    @abstractmethod
    def _ask(self, tasks: list[Task]) -> None:
        """The client is asked what these tasks wait for."""

    @abstractmethod
    def _response(self, task_id: str, data: Data) -> None: ...

    @abstractmethod
    def _failure(self, task_id: str, data: Data) -> None: ...

    @abstractmethod
    def _trouble(self, data: Data) -> None:
        """An error of the connection."""

    @abstractmethod
    def _event(self, data: Data) -> None: ...

    @abstractmethod
    def _reconnect(self, data: Data) -> None: ...

    @abstractmethod
    def _reset(self, resume: Data) -> None:
        """The log does not reach back to what the client has."""
