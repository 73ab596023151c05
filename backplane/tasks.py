"""The tasks: what was accepted, what became of it, and that each ends once.

A task's record stands beside its session's log, so one script writes both, and whatever races for a task's
end (the AES's answer, a cancel, a deadline) is decided there (``lua/_task.lua`` says what a record holds).
Its action is in another slot of a cluster. So a send is: reserve the task, push its action under a mark that
lets it be pushed only once. Who dies in between leaves a reserved task, and a router finds out by the mark
what became of it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from backplane.appending import Appending, Entry
from backplane.errors import (
    Busy,
    InputExpired,
    NameUsed,
    NotYours,
    RedisRefused,
    RedisUnavailable,
    UnknownTask,
)
from backplane.keys import Keys
from backplane.position import Position, new_epoch
from backplane.scripts import (
    ACCEPT,
    CANCEL,
    CATCH_UP,
    END_TASK,
    INPUT,
    LOG_EVENT,
    SETTLE,
    Script,
)
from backplane.settings import Settings
from backplane.store import Store
from backplane.task import DUE_FIELDS, ENDED, Due, Duplicate, Found, NewTask, Reserved
from backplane.trace_context import sample_bound, traceparent_of_task
from backplane.wire import Argument, forget

RESERVED_S = 10.0  # a reserved task is looked at by a router after that
_CANCEL_S = 2.0  # whoever cancels a task has so long before a router does it for him


class Tasks:
    """The tasks' records.

    Args:
        store: through which.
    """

    def __init__(self, store: Store, keys: Keys, settings: Settings) -> None:
        self._store = store
        self._keys = keys
        self._appending = Appending(settings, keys, store.publish_command)
        self._session_ttl_ms = settings.session_log_max_age_s * 1125
        self._sampled = sample_bound(settings.trace_sample_ratio)
        self._ahead_s = 0.0  # of this process's clock is the server's
        self._names_kept_s = settings.idempotency_kept_s
        self._most = settings.session_tasks_max
        self._kept_ms = settings.task_kept_s * 1000
        self._grace_ms = int(settings.deadline_grace_s * 1000)

    async def accept(self, task: NewTask) -> Reserved | Duplicate:
        """Reserve a task, if it is not known and its session is free for it.

        Raises:
            NotYours: the session belongs to another user.
            NameUsed: its name was used for something else.
            Busy: the session's other tasks do not allow it.
            RedisUnavailable: Redis did not answer; a reserved task that is not pushed is forgotten.
        """
        keys, listed = self._keys, task.callback_list
        base = keys.session(listed, task.session_id)
        names = [base, f"{base}:tasks", keys.due(listed), keys.task(listed, task.task_id)]
        names += [keys.send(listed, name) for name in task.names]
        look_s = min(RESERVED_S, task.timeout_s)
        left_ms, look_left_ms = "", 0
        if task.left_s:
            look_s = min(look_s, look_for_anybody_s(task.left_s))
            left_ms, look_left_ms = str(task.left_s * 1000), int(look_for_anybody_s(task.left_s) * 1000)
        args: list[Argument] = [
            new_epoch(time.time()), self._session_ttl_ms, task.user, task.task_id, task.fingerprint,
            self._names_kept_s, task.policy, self._most, int(RESERVED_S * 1000), int(task.timeout_s * 1000),
            int(task.extended_s * 1000), self._grace_ms + self._kept_ms, task.action, left_ms, look_left_ms,
            "session_id", task.session_id, "names", " ".join(task.names),
        ]  # fmt: skip
        for field in task.fields.items():
            args += field
        kind, *rest = await self._announced(listed, look_s, ACCEPT, names, args)
        return _accepted(kind.decode(), rest)

    def traceparent(self, task_id: str, given: str) -> str | None:
        """What is said of a task's trace.

        Args:
            given: by its client, as its record has it; empty: the trace is the task's own.
        """
        return given or traceparent_of_task(task_id, self._sampled)

    def _note_clock(self, reply: list[Any]) -> None:
        """Routers go by the server's clock."""
        if reply[0] in (b"new", b"held", b"duplicate"):
            self._ahead_s = reply[1] / 1000 - time.time()

    async def _announced(
        self, listed: str, look_s: float, script: Script, names: list[str], args: list[Argument]
    ) -> Any:
        """Run a script that makes a task of a list due.

        The routers know of it before anybody could die with it, and are told once more: one may have looked
        at the list between the two, and have put it off again. If they cannot be told, they find it when they
        next look through their lists.
        """
        with suppress(RedisUnavailable):
            self._tell_routers(listed, look_s).add_done_callback(forget)
        reply = await self._store.script(script, names, args)
        if script is ACCEPT:
            self._note_clock(reply)
        with suppress(RedisUnavailable):
            self._tell_routers(listed, look_s).add_done_callback(forget)
        return reply

    def _tell_routers(self, listed: str, look_s: float) -> asyncio.Future[Any]:
        look_at = int((time.time() + self._ahead_s + look_s) * 1000)
        return self._store.call("ZADD", self._keys.due_lists, "LT", look_at, listed)

    async def settle(self, callback_list: str, due: Due, *, pushed: bool) -> None:
        """Note what became of a task that was only reserved."""
        keys = self._keys
        base = keys.session(callback_list, due.session_id)
        names = [keys.task(callback_list, due.task_id), keys.due(callback_list), base]
        names += [f"{base}:{part}" for part in ("tasks", "log", "seen", "streams")]
        names += [keys.send(callback_list, name) for name in due.names.split()]
        appending = self._appending.arguments(callback_list, time.time())
        _, soon = await self._store.script(SETTLE, names, [due.task_id, int(pushed), *appending])
        if soon:
            self._look_soon(callback_list)

    async def settle_pushed(self, task: NewTask) -> None:
        """Note that a task's action was pushed.

        Raises:
            RedisUnavailable: Redis did not answer; a router does it later, or the agent's first word.
        """
        await self.settle(task.callback_list, _due_of(task), pushed=True)

    async def forget(self, task: NewTask) -> None:
        """Undo `accept`: its action was not pushed, and will not be.

        Raises:
            RedisUnavailable: Redis did not answer; a router does it later.
        """
        await self.settle(task.callback_list, _due_of(task), pushed=False)

    async def catch_up(self, callback_list: str, session_id: str, task_id: str) -> None:
        """Have a session's log say what Redis has of a task and it lacks: the question, the newest step.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        base = self._keys.session(callback_list, session_id)
        names = [base, self._keys.due(callback_list)]
        if self._store.clustered:
            names.append(self._keys.task(callback_list, task_id))
            names += [f"{base}:{part}" for part in ("log", "seen", "tasks", "streams")]
        args = [task_id, *self._appending.arguments(callback_list, time.time())]
        await self._store.script(CATCH_UP, names, list(args))

    async def find(self, tenant_id: str, task_id: str) -> Found | None:
        """A task's record; None if there is none.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        for callback_list in self._keys.callbacks_all(tenant_id):
            told = await self._store.call("HGETALL", self._keys.task(callback_list, task_id))
            if told:
                fields = {name.decode(): value.decode("utf-8", "replace") for name, value in told.items()}
                return Found(callback_list, fields)
        return None

    async def newest(self, callback_list: str, session_id: str) -> tuple[str, str] | None:
        """The task of a session that runs and was accepted last, and the session's cursor before it.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        base = self._keys.session(callback_list, session_id)
        ids = [task.decode() for task in await self._store.call("ZRANGE", f"{base}:tasks", 0, -1)]
        reads = [
            self._store.call("HMGET", self._keys.task(callback_list, task), "accepted", "status", "cursor")
            for task in ids
        ]
        told = [[_text(part) for part in record] for record in await asyncio.gather(*reads)]
        running = [
            (int(accepted), task, cursor)
            for task, (accepted, status, cursor) in zip(ids, told, strict=True)
            if accepted and status not in ENDED
        ]
        return max(running)[1:] if running else None

    async def named(self, tenant_id: str, name: str) -> str | None:
        """The task that was sent under a name (see `send_name`).

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        for callback_list in self._keys.callbacks_all(tenant_id):
            told = await self._store.call("GET", self._keys.send(callback_list, name))
            if told:
                return str(told.split(b" ")[0].decode())
        return None

    async def begin_cancel(self, found: Found, task_id: str, user: str, reason: str) -> Due:
        """Have nothing more of a task shown; `Due.status` is what it was before.

        Raises:
            NotYours: its session belongs to another user.
            UnknownTask: its record is gone.
            RedisUnavailable: Redis did not answer.
        """
        keys, listed = self._keys, found.callback_list
        base = keys.session(listed, found.fields.get("session_id", ""))
        names = [keys.task(listed, task_id), keys.due(listed), base]
        args: list[Argument] = [task_id, user, reason, int(_CANCEL_S * 1000), *DUE_FIELDS[1:]]
        reply = await self._announced(listed, _CANCEL_S, CANCEL, names, args)
        status, *rest = (part.decode("utf-8", "replace") for part in reply)
        if status == "unknown":
            raise UnknownTask
        if status == "not_yours":
            raise NotYours
        return Due(task_id, status, *rest)

    async def take_input(
        self, found: Found, task_id: str, user: str, input_id: str, fingerprint: str
    ) -> Due | None:
        """Take a client's answer to what a task's agent has asked.

        Args:
            fingerprint: of the answer, which may be sent again.

        Returns:
            The task; None if nothing of this id is asked (any more), or something else was answered.

        Raises:
            InputExpired: it came too late.
            UnknownTask, NotYours, RedisUnavailable: as `begin_cancel`.
        """
        keys, listed = self._keys, found.callback_list
        names = [
            keys.task(listed, task_id), keys.session(listed, found.fields.get("session_id", ""))
        ]  # fmt: skip
        reply = await self._store.script(INPUT, names, [user, input_id, fingerprint, *DUE_FIELDS])
        what, *rest = (part.decode("utf-8", "replace") for part in reply)
        if what == "unknown":
            raise UnknownTask
        if what == "not_yours":
            raise NotYours
        if what == "expired":
            raise InputExpired
        return Due(task_id, *rest) if what == "taken" else None

    async def report(self, callback_list: str, entry: Entry, now: float) -> None:
        """Append a message about how a task goes to its session's log, once.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        base = self._keys.session(callback_list, entry.session_id)
        names = [base, self._keys.task(callback_list, entry.task_id), self._keys.due(callback_list)]
        if self._store.clustered:
            names += [f"{base}:{part}" for part in ("log", "seen", "tasks", "streams")]
        args = [*self._appending.arguments(callback_list, now), *entry.arguments(0)]
        await self._store.script(LOG_EVENT, names, args)

    async def end(self, callback_list: str, entry: Entry, wanted: str, now: float) -> str:
        """End a task that the AES does not end.

        Args:
            entry: its last message.
            wanted: the status that it has to have; empty: any, if its deadline is over.
            now: seconds since 1970.

        Returns:
            Empty if this has ended it, else its status; ``unknown`` if its record is gone.

        Raises:
            RedisUnavailable: Redis did not answer.
            RedisRefused: the session's keys hold something else than a session.
        """
        keys = self._keys
        base = keys.session(callback_list, entry.session_id)
        names = [base, keys.task(callback_list, entry.task_id), keys.due(callback_list)]
        if self._store.clustered:
            names += [f"{base}:{part}" for part in ("log", "seen", "tasks", "streams")]
            names += [f"{names[1]}:{part}" for part in ("stream", "text", "reasoning")]
        args = [entry.task_id, wanted, *self._appending.arguments(callback_list, now), *entry.arguments(0)]
        done, *told = await self._store.script(END_TASK, names, list(args))
        if done < 0:
            raise RedisRefused(told[0].decode("utf-8", "replace"))
        if not done:
            return told[0].decode() or "unknown"
        if told[0]:
            self._look_soon(callback_list)
        return ""

    def _look_soon(self, callback_list: str) -> None:
        """Another task goes on now; if the routers are not told, they look later all the same."""
        with suppress(RedisUnavailable):
            self._tell_routers(callback_list, 0.0).add_done_callback(forget)


def look_for_anybody_s(left_s: int) -> float:
    """How often it is looked whether anybody is left, as long as somebody is."""
    return max(1.0, min(left_s / 4, 15.0))


def _due_of(task: NewTask) -> Due:
    return Due(task.task_id, session_id=task.session_id, names=" ".join(task.names))


def _text(reply: bytes | None) -> str:
    return "" if reply is None else reply.decode("utf-8", "replace")


def _accepted(kind: str, rest: list[Any]) -> Reserved | Duplicate:
    if kind == "not_yours":
        raise NotYours
    if kind == "other":
        raise NameUsed(rest[0].decode())
    if kind == "busy":
        raise Busy([task.decode() for task in rest])
    at, *rest = rest
    if kind == "duplicate":
        task_id, status, deadline, cursor, queue, traceparent = (part.decode() for part in rest)
        ends = None if status == "held" or not deadline else int(deadline) / 1000
        return Duplicate(at / 1000, task_id, status, ends, cursor, queue, traceparent)
    epoch, head, *interrupted = rest
    position = Position(epoch.decode(), head)
    return Reserved(at / 1000, position, [task.decode() for task in interrupted], held=kind == "held")
