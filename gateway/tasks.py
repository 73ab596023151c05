"""What clients may ask of a task: how it goes, and that it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from uuid import uuid4

import msgspec

from backplane.errors import InputExpired, NotYours, QueueFull, RedisUnavailable, UnknownTask
from backplane.log import Logger
from backplane.session_log import Running, SessionLog
from backplane.task import ENDED, Due, Found, NewTask, send_name
from backplane.task_cancel import finish_cancel
from backplane.task_end import input_action, input_entry
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks
from gateway.errors import ClientError, session_taken
from gateway.identity import Grant, Identity, Stated, check_scope, check_tenant, settle, valid_id

_TIMES = {
    "created_at": "accepted",
    "started_at": "started",
    "ended_at": "ended",
    "deadline_at": "deadline",
}
_SHOWN = {"held": "queued", "reserved": "queued", "input_required": "working"}
_REASON_MAX = 256


class TaskDesk:
    """Answers for tasks, for HTTP and sockets.

    Args:
        log: for operators.
        on_ended: told of tasks that are cancelled here: tenant, tier, agent, how.
    """

    def __init__(
        self,
        tasks: Tasks,
        queue: TaskQueue,
        session_log: SessionLog,
        log: Logger,
        on_ended: Callable[[str, str, str, str], None] = lambda *_task: None,
    ) -> None:
        self._tasks = tasks
        self._queue = queue
        self._session_log = session_log
        self._log = log
        self._finishing: set[asyncio.Task[None]] = set()
        self._on_ended = on_ended
        self.cancelled = 0

    async def show(self, grant: Grant, stated: Stated, task_id: str) -> dict[str, Any]:
        """A task's record.

        Raises:
            ClientError: 404 there is none, 403 it is another user's or session's.
            RedisUnavailable: Redis did not answer.
        """
        found, identity = await self._find(grant, stated, task_id, "listen")
        if not await self._session_log.belongs(found.callback_list, identity.session_id, identity.owner):
            raise session_taken()
        return _shown(task_id, identity.tenant_id, found.fields)

    async def cancel(
        self, grant: Grant, stated: Stated, task_id: str | None, message_id: str | None, reason: str
    ) -> dict[str, Any]:
        """End a task; one that has ended is told so.

        Args:
            stated: with the session where that is known; else it is the task's own.
            task_id: None if it is named by ``message_id``, the ``client_message_id`` with which it was sent.
            reason: in the client's words; passed on to the AES and into the task's last message.

        Raises:
            ClientError: 404 there is none, 403 it is another user's or session's, 400 neither was given.
            RedisUnavailable: Redis did not answer. If it was cancelled by then, a router ends it.
        """
        if len(reason) > _REASON_MAX:
            raise ClientError(422, "invalid_field", f"reason is over {_REASON_MAX} characters")
        if task_id is None:
            task_id = await self._named(grant, stated, message_id)
        found, identity = await self._find(grant, stated, task_id, "chat")
        try:
            due = await self._tasks.begin_cancel(found, task_id, identity.owner, reason)
        except UnknownTask:
            raise _unknown() from None
        except NotYours:
            raise session_taken() from None
        if due.status in ENDED:
            return _cancelled(task_id, due.status)
        status = await finish_cancel(self._tasks, self._queue, found.callback_list, identity.tenant_id, due)
        if not status:
            self.cancelled += 1
            self._on_ended(identity.tenant_id, due.tier, due.agent_id, "cancelled")
        return _cancelled(task_id, status or "cancelled")

    async def answer(
        self, grant: Grant, stated: Stated, task_id: str, input_id: str, value: msgspec.Raw
    ) -> dict[str, Any]:
        """Pass on what a user answers to what his agent has asked.

        Args:
            value: any JSON.

        Raises:
            ClientError: 404 there is no such task, 403 it is another user's or session's, 409 it does not
                wait for this, or not any more, 503 the queue is full.
            RedisUnavailable: Redis did not answer; it may be sent again.
        """
        valid_id(input_id, "input_id")
        found, identity = await self._find(grant, stated, task_id, "chat")
        fingerprint = blake2b(bytes(value), digest_size=16).hexdigest()
        try:
            due = await self._tasks.take_input(found, task_id, identity.owner, input_id, fingerprint)
        except UnknownTask:
            raise _unknown() from None
        except NotYours:
            raise session_taken() from None
        except InputExpired:
            raise ClientError(409, "input_expired", "the agent does not wait for this any more") from None
        told = {"success": True, "task_id": task_id, "input_id": input_id}
        if due is None and found.fields.get("input_answer") == f"{input_id} {fingerprint}":
            return told  # again, after the task has ended
        if due is None:
            detail = "the task does not wait for this input, or it was answered already"
            raise ClientError(409, "input_not_wanted", detail)
        await self._pass_on(found.callback_list, identity, due, input_id, value)
        return told

    async def _pass_on(
        self, callback_list: str, identity: Identity, due: Due, input_id: str, value: msgspec.Raw
    ) -> None:
        now, traceparent = time.time(), self._tasks.traceparent(due.task_id, due.traceparent)
        action = input_action(
            uuid4(), due.task_id, due.session_id, identity.tenant_id, due.tier, due.agent_id, due.context,
            due.queue, callback_list, input_id, value, now, traceparent,
        )  # fmt: skip
        try:
            await self._queue.push(due.queue, due.task_id, f"input-{input_id}", action)
        except QueueFull:
            detail = f"too many messages of tier {due.tier} wait for agents; send it again"
            raise ClientError(503, "queue_full", detail, retry_after_s=5) from None
        # A quick agent may have asked its next question by now; this does not take it back.
        entry = input_entry(
            due.task_id, due.session_id, identity.tenant_id, due.tier, input_id, now, traceparent
        )
        await self._tasks.report(callback_list, entry, now)

    async def finished(self) -> None:
        """Return when nothing is under way any more."""
        while self._finishing:
            await asyncio.wait(self._finishing)

    def finish(self, callback_list: str, tenant_id: str, task_ids: list[str]) -> None:
        """End tasks that are being cancelled already; whatever goes wrong, a router does it later."""
        for task_id in task_ids:
            self._spawn(self._finish(callback_list, tenant_id, task_id))

    def settle(self, task: NewTask) -> None:
        """Note that a task's action was pushed, and have its question shown."""
        self._spawn(self._settle(task))

    def show_question(self, task: NewTask) -> None:
        """Have the question shown of a task that waits for others of its session."""
        self._spawn(self._show_question(task))

    async def _show_question(self, task: NewTask) -> None:
        try:
            await self._tasks.catch_up(task.callback_list, task.session_id, task.task_id)
        except RedisUnavailable as error:  # it is shown when the task goes on
            self._log.debug("question_not_shown", task_id=task.task_id, reason=str(error))

    async def _settle(self, task: NewTask) -> None:
        try:
            await self._tasks.settle_pushed(task)
        except RedisUnavailable as error:  # a router does it, or the agent's first word
            self._log.debug("task_not_settled", task_id=task.task_id, reason=str(error))

    async def _finish(self, callback_list: str, tenant_id: str, task_id: str) -> None:
        try:
            found = await self._tasks.find(tenant_id, task_id)
            if found is not None:
                fields = {name: found.fields.get(name, "") for name in Due._fields[1:]}
                due = Due(task_id, **fields)
                ended = await finish_cancel(self._tasks, self._queue, callback_list, tenant_id, due)
                if not ended:
                    self.cancelled += 1
                    self._on_ended(tenant_id, due.tier, due.agent_id, "cancelled")
        except RedisUnavailable as error:
            self._log.warning("task_not_ended", tenant_id=tenant_id, task_id=task_id, reason=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("task_died", exc_info=task.exception())

    async def _find(self, grant: Grant, stated: Stated, task_id: str, scope: str) -> tuple[Found, Identity]:
        check_scope(grant, scope)
        valid_id(task_id, "task_id")
        found = await self._tasks.find(_tenant(grant, stated), task_id)
        if found is None:
            raise _unknown()
        session_id = found.fields.get("session_id", "")
        if stated.session_id not in (None, session_id):
            raise ClientError(403, "forbidden", f"{stated.names[2]} is not the session of this task")
        # Its tier counts only if nobody says another: the tenant may have changed it since.
        tier = stated.tenant_tier or grant.tenant_tier or found.fields.get("tier")
        own = stated._replace(session_id=session_id, tenant_tier=tier)
        return found, settle(grant, own)

    async def _named(self, grant: Grant, stated: Stated, message_id: str | None) -> str:
        check_scope(grant, "chat")
        if message_id is None:
            raise ClientError(400, "missing_id", "task_id or client_message_id is needed")
        if stated.session_id is None:
            raise ClientError(400, "missing_id", f"{stated.names[2]} is needed with client_message_id")
        tenant_id = _tenant(grant, stated)
        task_id = await self._tasks.named(tenant_id, send_name("message", stated.session_id, message_id))
        if task_id is None:
            raise _unknown()
        return task_id


def _tenant(grant: Grant, stated: Stated) -> str:
    tenant_id = check_tenant(grant, stated.tenant_id)
    if tenant_id is None:
        raise ClientError(400, "missing_id", f"{stated.names[0]} is needed")
    return tenant_id


def _unknown() -> ClientError:
    return ClientError(404, "unknown_task", "there is no such task, or it ended too long ago")


def _cancelled(task_id: str, status: str) -> dict[str, Any]:
    return {"success": True, "task_id": task_id, "status": status, "cancelled": status == "cancelled"}


def _shown(task_id: str, tenant_id: str, fields: dict[str, str]) -> dict[str, Any]:
    status = fields["status"]
    told: dict[str, Any] = {
        "task_id": task_id,
        "tenant_id": tenant_id,
        "session_id": fields.get("session_id"),
        "agent_id": fields.get("agent_id"),
        "status": _SHOWN.get(status, status),
        "input_required": status == "input_required",
        "attempt": int(fields.get("attempt", 1)),
        "cursor": fields.get("cursor"),
        "messages": None,
        "usage": _json(fields.get("usage")),
        "reason": fields.get("reason"),
        "late": int(fields.get("late", 0)),
        "late_answer": _json(_whole(fields.get("late_answer"))),
    }
    if "first" in fields:
        told["messages"] = {
            "epoch": fields.get("epoch"),
            "first": int(fields["first"]),
            "last": int(fields.get("last", fields["first"])),
        }
    for name, field in _TIMES.items():
        told[name] = moment(fields.get(field))
    if status == "held":
        told["deadline_at"] = None  # its time has not begun
    return told


def active_task(task: Running) -> dict[str, Any]:
    """A task that runs, as a new connection is told of it."""
    return {
        "task_id": task.task_id,
        "status": _SHOWN.get(task.status, task.status),
        "input_required": task.status == "input_required",
        "agent_id": task.agent_id,
        "attempt": int(task.attempt or 1),
        "created_at": moment(task.accepted),
        "deadline_at": None if task.status == "held" else moment(task.deadline),
    }


def moment(milliseconds: str | None) -> str | None:
    """A time of a task's record as clients are told it: ISO 8601."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC).isoformat()


def _whole(entry: str | None) -> str | None:
    """A log entry as a message: it is kept without the end that tells its position."""
    return None if entry is None else f"{entry.removesuffix(',')}}}}}"


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
