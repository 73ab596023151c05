"""What can go wrong on the Redis side.

OrchestratorError
├── ConfigurationError       a setting is unknown or has a bad value: the process does not start
├── InvalidId                an id is empty, too long or has a character outside the contract's set
├── InvalidCursor            a cursor is not of the form ``epoch:seq``
├── BadCallback              a callback cannot be understood: it goes to the dead letters with its reason
├── QueueFull                the actions queue is at its limit
├── LimitReached             there is no room for one more of something that is kept in Redis
├── NameUsed                 a name under which a send may be repeated was used for something else
├── Busy                     a session has tasks that do not allow another one now
├── InputExpired             what an agent asked was answered too late
├── UnknownTask              there is no such task, or nothing is known of it any more
├── NotYours                 the session belongs to another user
└── RedisUnavailable         Redis did not answer, or not in time
    └── RedisRefused         Redis answered with an error reply
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigurationError(OrchestratorError):
    """A setting is unknown or has a bad value."""


class InvalidId(OrchestratorError):
    """An id is outside of what the contract allows.

    Attributes:
        what: which id it is, in the caller's words (``tenant_id``, ``X-Session-ID``).
    """

    def __init__(self, what: str, value: str) -> None:
        self.what = what
        shown = ascii(value[:40]) + ("…" if len(value) > 40 else "")
        problem = "is missing" if not value else f"is not a valid id: {shown}"
        super().__init__(f"{what} {problem}; an id is 1 to 128 characters of A-Z a-z 0-9 . _ ~ -")


class InvalidCursor(OrchestratorError):
    """A cursor is not of the form ``epoch:seq``."""


class BadCallback(OrchestratorError):
    """A callback cannot be understood.

    Attributes:
        reason: one of the closed list in ``backplane.router.dispatch.REASONS``.
        detail: what exactly is wrong, for the operator.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class QueueFull(OrchestratorError):
    """The actions queue holds as many actions as its setting allows."""


class LimitReached(OrchestratorError):
    """There is no room for one more of something that is kept in Redis."""


class NameUsed(OrchestratorError):
    """A name under which a send may be repeated was used for something else.

    Attributes:
        task_id: what was sent under it.
    """

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"the name was used for task {task_id}")


class Busy(OrchestratorError):
    """A session has tasks that do not allow another one now.

    Attributes:
        tasks: which.
    """

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        super().__init__(f"{len(tasks)} tasks run")


class InputExpired(OrchestratorError):
    """What an agent asked was answered too late."""


class UnknownTask(OrchestratorError):
    """There is no such task, or nothing is known of it any more."""


class NotYours(OrchestratorError):
    """The session belongs to another user."""


class RedisUnavailable(OrchestratorError):
    """Redis did not answer, or not in time; whether it did what was asked is unknown."""


class RedisRefused(RedisUnavailable):
    """Redis answered with an error reply; it did not do what was asked."""
