"""A task, as it is sent, found and looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from backplane.position import Position

ENDED = frozenset({"completed", "failed", "timeout", "cancelled"})


class NewTask(NamedTuple):
    """A send that is to be accepted.

    Attributes:
        names: under which the client may send it again (see `send_name`), at most two.
        fingerprint: of what it says: the same name with another one is refused.
        timeout_s: the time that it has.
        extended_s: how far reports of progress may put that off; at least ``timeout_s``.
        policy: for a session that is busy: one of `BUSY_POLICIES`.
        fields: more of its record.
        action: with ``enqueue`` what is pushed when the others have ended.
        left_s: how long nobody may be connected to its session before it is cancelled; None: for ever.
    """

    task_id: str
    callback_list: str
    session_id: str
    user: str
    names: Sequence[str]
    fingerprint: str
    timeout_s: float
    extended_s: float
    policy: str
    fields: Mapping[str, str]
    action: bytes = b""
    left_s: int | None = None


class Reserved(NamedTuple):
    """A send that was accepted.

    Attributes:
        at: when, by the server's clock (seconds since 1970).
        position: of the session's log, before the task.
        interrupted: tasks of the session that are being cancelled for it.
        held: it waits for others of its session to end.
    """

    at: float
    position: Position
    interrupted: list[str]
    held: bool = False


class Duplicate(NamedTuple):
    """A send that had been accepted before.

    Attributes:
        at: now, by the server's clock (seconds since 1970).
        status: of its task; empty if nothing is known of it any more.
        deadline: seconds since 1970; None likewise, and if it waits for others.
        cursor: of the session, before the task.
        queue: of its action.
        traceparent: its client's, if one was given.
    """

    at: float
    task_id: str
    status: str
    deadline: float | None
    cursor: str
    queue: str
    traceparent: str = ""


class Due(NamedTuple):
    """A task at which a router has to look.

    Attributes:
        unpushed: see ``lua/_cancel.lua``.
        action: what is pushed when it goes on, if it waits for others or has.
        deadline: ms since 1970, as text.
        what: at what: ``left``, whether anybody is; ``pending``, what it reported last; empty: its status and
            its time.
    """

    task_id: str
    status: str = ""
    session_id: str = ""
    tier: str = ""
    queue: str = ""
    names: str = ""
    reason: str = ""
    context: str = ""
    agent_id: str = ""
    unpushed: str = ""
    action: str = ""
    deadline: str = ""
    traceparent: str = ""
    what: str = ""


DUE_FIELDS = Due._fields[1:-1]
"""Of a task's record."""


class Found(NamedTuple):
    """A task's record, as text."""

    callback_list: str
    fields: dict[str, str]


def send_name(kind: str, session_id: str, name: str) -> str:
    """The name under which a client may send something again, of any text; 32 characters.

    Args:
        kind: who gave it: an ``Idempotency-Key`` and a ``client_message_id`` are different ones.
    """
    return blake2b(f"{kind}\n{session_id}\n{name}".encode(), digest_size=16).hexdigest()
