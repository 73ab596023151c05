"""What every script needs that appends to session logs (``lua/_append.lua``)."""

from __future__ import annotations

from typing import NamedTuple

from backplane.keys import Keys
from backplane.messages import timestamp
from backplane.position import new_epoch
from backplane.settings import Settings
from backplane.wire import Argument


class Entry(NamedTuple):
    """One entry for a session's log.

    Attributes:
        session_id: whose it is.
        digest: its identity, by which a copy is known; empty if it is published and not kept.
        body: see `backplane.messages`.
        kind: ``t`` if it ends a task, ``p`` if it reports how one goes, ``c`` if it is a piece of its answer
            (then ``body`` is the inside of a JSON string), empty if it is of no task.
        task_id: of which.
        detail: with ``t`` the status, perhaps ``#`` and the attempt, and behind a space what the task has
            used (JSON); with ``p`` the same and, each behind a space and the last ones perhaps missing, the
            milliseconds by which it asks to be given more time, the id of what it asks its user, until when,
            and the step if a later report of the same step may take its place; with ``c`` attempt, part,
            offset and length.
    """

    session_id: str
    digest: bytes
    body: bytes
    kind: str = ""
    task_id: str = ""
    detail: str | bytes = ""

    def arguments(self, position: int) -> tuple[Argument, ...]:
        """As the scripts take it.

        Args:
            position: of its callback in the list.
        """
        return position, self.digest, self.body, self.kind, self.task_id, self.detail


ARGUMENTS_AN_ENTRY = 6


class Appending:
    """The bounds of logs, and of what is kept of tasks, as arguments."""

    def __init__(self, settings: Settings, keys: Keys, publish_command: str) -> None:
        self._keys = keys
        self._max_age_s = settings.session_log_max_age_s
        self._limits: tuple[Argument, ...] = (
            settings.session_log_max_entries,
            settings.session_log_max_bytes,
            settings.session_remembered_callbacks,
            publish_command,
        )
        self._of_tasks: tuple[Argument, ...] = (
            settings.task_kept_s * 1000,
            int(settings.deadline_grace_s * 1000),
            settings.late_answers,
            settings.stream_max_bytes,
            settings.progress_interval_ms,
        )

    def arguments(self, callback_list: str, now: float) -> tuple[Argument, ...]:
        """For sessions of one callback list.

        Args:
            now: seconds since 1970.
        """
        oldest = timestamp(now - self._max_age_s)
        prefix = self._keys.task(callback_list, "")
        return (new_epoch(now), self._max_age_s * 1000, oldest, *self._limits, prefix, *self._of_tasks)
