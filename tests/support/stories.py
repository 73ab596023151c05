"""Scripted sessions: what a session said, and what a client is sent that comes in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from backplane.position import parse_cursor

EPOCH = "1m2k3j"
LOGGED = ("agent_response", "task_update", "user_message", "input_required")


class Said(NamedTuple):
    """A message, and its position if it is of the log."""

    message: dict[str, Any]
    position: str | None


def message(kind: str, task_id: str | None, **data: Any) -> dict[str, Any]:
    """A message as it comes out of JSON; without a position."""
    return {
        "timestamp": "2026-01-31T12:00:00.000Z",
        "type": kind,
        "task_id": task_id,
        "session_id": "s-1",
        "tenant_id": "acme",
        "tenant_tier": "free",
        "data": data if task_id is None else {"task_id": task_id, **data},
        "metadata": {},
    }


def chunk(task_id: str, delta: str, offset: int, *, attempt: int = 1, part: str = "text") -> dict[str, Any]:
    """A piece of a streamed answer."""
    return message("agent_chunk", task_id, delta=delta, offset=offset, attempt=attempt, part=part)


def chunks(task_id: str, *deltas: str, attempt: int = 1, part: str = "text") -> list[dict[str, Any]]:
    """Pieces of a streamed answer, one after the other."""
    found, offset = [], 0
    for delta in deltas:
        found.append(chunk(task_id, delta, offset, attempt=attempt, part=part))
        offset += len(delta)
    return found


def snapshot(task_id: str, text: str, *, attempt: int = 1, part: str = "text") -> dict[str, Any]:
    """All of a part so far, as it is told after a re-connect."""
    found = chunk(task_id, text, 0, attempt=attempt, part=part)
    found["data"]["snapshot"] = True
    return found


def tool(task_id: str, call_id: object, status: str, **about: Any) -> dict[str, Any]:
    """A report of a tool call."""
    reported = {"call_id": call_id, "name": "search", "status": status, "args": None, "result": None, **about}
    return update(task_id, tool=reported)


def update(task_id: str, **about: Any) -> dict[str, Any]:
    """A ``task_update``."""
    fields = {"status": "working", "step": None, "message": None, "progress": None, "tool": None}
    return message("task_update", task_id, **{**fields, **about})


def response(task_id: str, text: object, **about: Any) -> dict[str, Any]:
    """The answer that ends a task."""
    told = {"sources": [], "agent_info": {}, "status": "completed", "metadata": {}, **about}
    return message("agent_response", task_id, response=text, **told)


def failure(task_id: str, status: str = "failed", **about: Any) -> dict[str, Any]:
    """The error that ends a task."""
    told = {"error": "it broke", "error_code": "agent_failed", "status": status, "retryable": False, **about}
    return message("error", task_id, **told)


def question(task_id: str, text: str = "why?", client_message_id: str | None = "m-1") -> dict[str, Any]:
    """The user's message, as the session's devices are told of it."""
    return message("user_message", task_id, message=text, client_message_id=client_message_id, user_id="ann")


def greeting(cursor: str, status: str = "replayed", active: Sequence[str] = ()) -> dict[str, Any]:
    """A ``connection_ack``."""
    position = parse_cursor(cursor)
    resume = {
        "status": status,
        "from": position.seq,
        "to": position.seq,
        "oldest": 1,
        "epoch": position.epoch,
    }
    tasks = [{"task_id": task_id, "status": "running", "attempt": 1} for task_id in active]
    return message(
        "connection_ack", None, connection_id="c", cursor=cursor, resume=resume, active_tasks=tasks
    )


def is_logged(said: dict[str, Any]) -> bool:
    """Whether a message is one of the session log."""
    return said["type"] in LOGGED or (said["type"] == "error" and said["task_id"] is not None)


class Story:
    """A session from its first message to its last.

    Args:
        messages: in their order; those of the log get positions.
    """

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self.said: list[Said] = []
        seq = 0
        for one in messages:
            if is_logged(one):
                seq += 1
                placed = {**one, "metadata": {"epoch": EPOCH, "seq": seq}}
                self.said.append(Said(placed, f"{EPOCH}:{seq}"))
            else:
                self.said.append(Said(one, None))

    def __len__(self) -> int:
        return len(self.said)

    def first(self, task_id: str) -> str:
        """The cursor before the first message of the log that is about a task."""
        own = [s for s in self.said if s.position and s.message["task_id"] == task_id]
        assert own[0].position is not None
        position = parse_cursor(own[0].position)
        return f"{position.epoch}:{position.seq - 1}"

    def running(self, at: int) -> list[str]:
        """The tasks that had begun and not ended when ``at`` messages had been said."""
        tasks: dict[str, None] = {}
        for said in self.said[:at]:
            if said.message["type"] in ("agent_response", "error"):
                tasks.pop(said.message["task_id"], None)
            elif said.message["task_id"]:
                tasks[said.message["task_id"]] = None
        return list(tasks)

    def connection(self, at: int, cursor: str | None) -> Iterator[tuple[int, Said | None]]:
        """What a client is sent that comes after ``at`` messages, each with how many have been said then.

        None stands where it has caught up.
        """
        start = parse_cursor(cursor or f"{EPOCH}:0")
        yield at, Said(greeting(str(start), "replayed", self.running(at)), None)
        for said in self.said[:at]:
            if said.position is not None and parse_cursor(said.position).seq > start.seq:
                yield at, said
        for task_id in self.running(at):
            for found in self._snapshots(task_id, at):
                yield at, Said(found, None)
        yield at, None
        for number, said in enumerate(self.said[at:], at + 1):
            yield number, said

    def _snapshots(self, task_id: str, at: int) -> list[dict[str, Any]]:
        told = [s.message["data"] for s in self.said[:at] if s.message["type"] == "agent_chunk"]
        own = [data for data in told if data["task_id"] == task_id]
        attempt = max([data["attempt"] for data in own], default=1)
        found = []
        for part in ("reasoning", "text"):
            pieces = [d["delta"] for d in own if d["part"] == part and d["attempt"] == attempt]
            if pieces:
                found.append(snapshot(task_id, "".join(pieces), attempt=attempt, part=part))
        return found
