"""What one client has been told, and the events that tell it more: [P] pure.

The connection may break between any two events, also in the middle of those that one message became. So every
event's id says what the client has once it has seen that very event:

- Text is exact to the character: the id carries how much of it the client has.
- Opening and closing a block, and whatever else a client may be told twice, is told again.
- What must not come twice (arguments that are appended, a source that is added) is counted within its
  message, the id says how many were told, and after a re-connect that many are passed over.
- Only the last event of a message of the log carries the position of that message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias
from zlib import crc32

from backplane.errors import InvalidCursor
from backplane.position import Position, parse_cursor
from gateway.encoders import fields, sse
from gateway.encoders.event_id import (
    MAX_BLOCKS,
    MAX_GROUPS,
    MAX_NUMBER,
    MAX_TOLD,
    EventId,
    Have,
    Part,
    format_event_id,
)

PartName: TypeAlias = Literal["text", "reasoning"]
PARTS: tuple[PartName, ...] = ("text", "reasoning")

FINAL = MAX_NUMBER
"""The attempt that a whole response is."""

MAX_TASKS = MAX_GROUPS - 1
"""Tasks whose course is told at once. One more has to fit into an id: a task beyond them that ends."""

MAX_CALLS = 500
"""Tool calls of one task that are told apart."""

_SPLIT_BLOCKS = 1000
_ENDED_KEPT = 64


class Stream:
    """The text or the reasoning of one attempt, as far as the client has it; not the characters themselves.

    Attributes:
        chars, blocks, open, check: see `Part`.
        here: the block that is open was opened over this connection.
    """

    __slots__ = ("blocks", "chars", "check", "here", "open")

    def __init__(self, part: Part, *, here: bool) -> None:
        self.chars, self.blocks, self.open, self.check = part
        self.here = here and self.open

    @property
    def part(self) -> Part:
        """What the client has."""
        return Part(self.chars, self.blocks, self.open, self.check)

    def agrees(self, whole: str) -> bool:
        """Whether ``whole`` begins with what the client has."""
        return len(whole) >= self.chars and _check(whole[: self.chars]) == self.check

    def lacks(self, piece: str, offset: int) -> str:
        """What of ``piece``, ``offset`` characters from the start, continues what the client has.

        Nothing if it is known, and nothing behind a hole: the whole answer follows when the task ends.
        """
        return piece[self.chars - offset :] if offset <= self.chars else ""

    def add(self, piece: str) -> None:
        """The client is told ``piece``."""
        self.chars = min(self.chars + len(piece), MAX_NUMBER)
        self.check = _check(piece, self.check)

    def begin_block(self) -> None:
        """The client is told that a block begins."""
        self.blocks = min(self.blocks + 1, MAX_BLOCKS)
        self.open = self.here = True

    def end_block(self) -> None:
        """The client is told that the block has ended."""
        self.open = self.here = False

    def withdraw(self) -> None:
        """The client is told that what it has does not count; further blocks get names of their own."""
        self.chars = self.check = 0
        self.end_block()


def _check(piece: str, start: int = 0) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass"), start)


class News(NamedTuple):
    """What a report tells of a call that was not known before."""

    call: Call
    new: bool
    args: bool
    ended: bool
    result: bool


class Call:
    """A tool call, as far as the client has it.

    Attributes:
        args: its arguments are known.
        ended: it is over, with or without a result.
        result: its result, or that it failed, is known.
        here: its beginning was told over this connection, and not its end.
    """

    __slots__ = ("args", "ended", "here", "name", "result")

    def __init__(self, name: str) -> None:
        self.name = name
        self.args = self.ended = self.result = self.here = False

    def note(self, report: fields.ToolReport) -> None:
        """Take over what a report says."""
        over = report.outcome != "running"
        self.args |= report.args is not None
        self.ended |= over
        self.result |= over and (report.result is not None or report.outcome == "failed")


def attempt_name(attempt: int) -> str:
    """How an attempt is called in the other protocol's ids."""
    return "final" if attempt == FINAL else str(attempt)


class Task:
    """A task that has begun and not ended, as far as the client has it.

    Attributes:
        since: see `Have`.
        calls: by call id.
        step: the step that is open over this connection.
        torn: parts that were about to be withdrawn when the connection broke.
        waiting: the ``input_required`` on which it waits.
    """

    __slots__ = ("attempt", "calls", "id", "reasoning", "since", "step", "text", "torn", "waiting")

    def __init__(self, task_id: str, have: Have | None = None, *, here: bool = False) -> None:
        have = have or Have()
        self.id = task_id
        self.attempt = have.attempt
        self.text = Stream(have.text, here=here)
        self.reasoning = Stream(have.reasoning, here=here)
        self.since = have.since
        self.calls: dict[str, Call] = {}
        self.step = ""
        self.torn: tuple[PartName, ...] = ()
        self.waiting: Mapping[str, Any] | None = None

    def still_waits(self, update: Mapping[str, Any]) -> bool:
        """Whether it goes on waiting for the same answer, whatever a ``task_update`` says."""
        if self.waiting is None:
            return False
        if update.get("step") == "input_received":  # perhaps what was asked before: a quick agent asks again
            return update.get("input_id") not in (None, self.waiting.get("input_id"))
        return update.get("status") == "input_required"

    @property
    def have(self) -> Have:
        """What the client has."""
        return Have(self.attempt, self.text.part, self.reasoning.part, self.since)

    @property
    def may_split(self) -> bool:
        """Whether a tool call still ends the block before it; else an agent could make blocks without end."""
        return max(self.text.blocks, self.reasoning.blocks) < _SPLIT_BLOCKS

    def part(self, name: PartName) -> Stream:
        """One part of the answer."""
        return self.text if name == "text" else self.reasoning

    def begin_attempt(self, attempt: int) -> None:
        """The client is told, or need not be, that what it has is of an earlier attempt."""
        self.attempt = attempt
        self.text = Stream(Part(), here=False)
        self.reasoning = Stream(Part(), here=False)

    def note(self, report: fields.ToolReport) -> News | None:
        """Take over what a report says of a tool call; None if there are too many to tell them apart."""
        call = self.calls.get(report.call_id)
        new = call is None
        if call is None:
            if len(self.calls) >= MAX_CALLS:
                return None
            call = self.calls[report.call_id] = Call(report.name)
        before = call.args, call.ended, call.result
        call.note(report)
        return News(call, new, call.args > before[0], call.ended > before[1], call.result > before[2])


class Ledger:
    """Where one client stands.

    Args:
        resume: what it has from an earlier connection.
        here: whether the blocks that it has open go on without being opened again.

    Attributes:
        tasks: those that were begun and have not ended, oldest first; at most `MAX_GROUPS`.
    """

    def __init__(self, resume: EventId | None, *, here: bool) -> None:
        self.tasks: dict[str, Task] = {}
        self._position: Position | None = None
        self._told = 0
        if resume is not None:
            self._position = _position(resume.cursor)
            self._told = min(resume.told, MAX_TOLD)
            for task_id, have in list(resume.have.items())[:MAX_GROUPS]:
                self.tasks[task_id] = Task(task_id, have, here=here)
        self._ended: dict[str, None] = {}
        self._next: Position | None = None
        self._count = 0
        self._events: list[tuple[bytes, str | None]] = []

    def start_at(self, position: Position) -> None:
        """What follows is behind ``position``, if nothing was known."""
        if self._position is None:
            self._position = position

    def begin(self, position: str | None) -> bool:
        """Begin to tell a message.

        Returns:
            False for one of the log that the client has.
        """
        self._next = None if position is None else _position(position)
        self._count = 0
        last = self._position
        if self._next is None or last is None:
            return True
        if self._next.epoch == last.epoch and self._next.seq <= last.seq:
            self._next = None
            return False
        if self._next.seq <= last.seq:  # the log was begun anew: what was said of the old one is void
            for task in self.tasks.values():
                task.since = 0
        return True

    def write(self, data: Mapping[str, Any], *, once: bool = False) -> None:
        """Tell something.

        Args:
            once: a client that was told before the connection broke must not be told again.
        """
        if once and self._next is not None:
            self._count += 1
            if self._count <= self._told:
                return
            self._told = min(self._count, MAX_TOLD)
        self._events.append((fields.to_json(data), self._id()))

    def end(self) -> bytes:
        """The events since `begin`."""
        if self._next is not None:
            self._position, self._next, self._told = self._next, None, 0
            if self._events:
                self._events[-1] = (self._events[-1][0], self._id())
        events, self._events = self._events, []
        return b"".join([sse.event(data, event_id=event_id) for data, event_id in events])

    def _id(self) -> str | None:
        if self._position is None:
            return None
        have = {task_id: task.have for task_id, task in self.tasks.items()}
        return format_event_id(EventId(str(self._position), have, self._told))

    def task(self, task_id: str, *, ends: bool = False) -> Task | None:
        """A task that a message is about, begun if it is new.

        Returns:
            None if it has ended, or if there are too many at once and it does not end with this message.
        """
        task = self.tasks.get(task_id)
        if task is None:
            if task_id in self._ended or len(self.tasks) >= (MAX_GROUPS if ends else MAX_TASKS):
                return None
            task = self.tasks[task_id] = Task(task_id)
        if self._next is not None and not task.since:
            task.since = self._next.seq
        return task

    def end_task(self, task: Task) -> None:
        """The client is told that a task has ended; what still comes of it is not told."""
        self.tasks.pop(task.id, None)
        self._ended[task.id] = None
        if len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]

    def forget_all_but(self, task_ids: set[str]) -> None:
        """Of the other tasks nothing will come any more: their end is lost."""
        self.tasks = {task_id: task for task_id, task in self.tasks.items() if task_id in task_ids}

    def remember(self, message: Mapping[str, Any]) -> None:
        """A message that the client was told over an earlier connection."""
        task = self.tasks.get(fields.task_id(message) or "")
        if task is None:
            return
        data = fields.mapping(message.get("data"))
        if message.get("type") == "input_required":
            task.waiting = data
        elif message.get("type") == "task_update" and not task.still_waits(data):
            task.waiting = None
        if message.get("type") == "task_update" and (report := fields.tool_report(data)):
            task.note(report)


def _position(text: str) -> Position | None:
    try:
        return parse_cursor(text)
    except InvalidCursor:
        return None
