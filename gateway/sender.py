"""Accepts a chat message: the same for HTTP and sockets."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from backplane.errors import Busy, NameUsed, NotYours, QueueFull, RedisUnavailable
from backplane.keys import TIERS, Keys
from backplane.rate_limiter import Charged, Quota, RateLimiter
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from backplane.tasks import Duplicate, NewTask, Reserved, Tasks, send_name
from gateway.access import AgentAccess
from gateway.chat import ChatBody, Context, build_action, context_id, fingerprint, question_entry, timeout_s
from gateway.errors import ClientError, redis_unavailable, session_taken
from gateway.identity import Identity, check_agent, check_scope
from gateway.rate_headers import over_the_limit, rate_headers
from gateway.tasks import TaskDesk


class Accepted(NamedTuple):
    """A message that was queued.

    Attributes:
        answer: of ``POST /api/chat/send``. Its ``cursor`` is the session's position before the task: whoever
            reads from there misses nothing.
        headers: what is left of the rate limits.
    """

    answer: dict[str, Any]
    headers: tuple[tuple[str, str], ...]


class Sender:
    """Turns accepted messages into actions on the AES's queues."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        log: SessionLog,
        queue: TaskQueue,
        tasks: Tasks,
        desk: TaskDesk,
        limiter: RateLimiter,
        access: AgentAccess,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._log = log
        self._queue = queue
        self._tasks = tasks
        self._desk = desk
        self._limiter = limiter
        self._access = access
        self._quotas = {tier: _quotas(settings, tier) for tier in TIERS}
        self.accepted = 0
        self.duplicates = 0

    async def send(self, identity: Identity, context: Context, body: ChatBody) -> Accepted:
        """Queue a message, or say what became of it if it was sent before.

        Raises:
            ClientError: 403 what the token does not allow, or another user's session, 409 its name was used
            for
                another message, or the session is busy, 429 a limit, 503 the queue is full or Redis away.
        """
        check_scope(identity.grant, "chat")
        check_agent(identity.grant, context.agent_id)
        now = int(time.time() * 1000) / 1000  # as the record has it
        try:
            callbacks = await self._log.callback_list(identity.tenant_id, identity.session_id)
            task = self._new_task(identity, context, body, callbacks, now)
            charged = await self._admit(identity, context.agent_id)
            accepted = await self._accept(identity, charged, task, now)
            if isinstance(accepted, Duplicate):
                await self._refund(identity, charged)
                task = task._replace(task_id=accepted.task_id, deadline=accepted.deadline or task.deadline)
                if accepted.status == "reserved":
                    await self._push(identity, context, body, task, now)
            else:
                self._desk.finish(callbacks, identity.tenant_id, accepted.interrupted)
                await self._push_first(identity, context, body, charged, task, now)
        except RedisUnavailable:
            raise redis_unavailable() from None
        if isinstance(accepted, Reserved):
            self.accepted += 1
            self._desk.settle(task)
        else:
            self.duplicates += 1
        headers = () if charged is None else rate_headers(charged.standings)
        return Accepted(self._answer(identity, task, accepted), headers)

    def _new_task(
        self, identity: Identity, context: Context, body: ChatBody, callback_list: str, now: float
    ) -> NewTask:
        settings, tier = self._settings, identity.tenant_tier
        names = (("key", context.idempotency_key), ("message", body.client_message_id))
        fields = {
            "tier": tier,
            "queue": self._keys.actions(tier),
            "agent_id": context.agent_id,
            "context": context_id(context),
        }
        task_id = str(uuid4())
        if settings.echo_messages:
            fields["question"] = question_entry(identity, context, body, task_id, now).decode()
        deadline = now + timeout_s(settings, tier, body.timeout)
        return NewTask(
            task_id=task_id,
            callback_list=callback_list,
            session_id=identity.session_id,
            user=identity.owner,
            names=[send_name(kind, identity.session_id, name) for kind, name in names if name is not None],
            fingerprint=fingerprint(context, body),
            deadline=deadline,
            latest=max(deadline, now + settings.for_tier("task_extended_max_s", tier)),
            policy=body.busy_policy or settings.busy_policy,
            fields=fields,
        )

    def _answer(self, identity: Identity, task: NewTask, accepted: Reserved | Duplicate) -> dict[str, Any]:
        duplicate = isinstance(accepted, Duplicate)
        return {
            "success": True,
            "task_id": task.task_id,
            "message": "Message accepted; the answer comes over the session's sockets.",
            "queue_name": task.fields["queue"],
            "estimated_time": self._settings.for_tier("estimated_time_s", identity.tenant_tier),
            "deadline_at": datetime.fromtimestamp(task.deadline, UTC).isoformat(),
            "cursor": accepted.cursor if isinstance(accepted, Duplicate) else str(accepted.position),
            "duplicate": duplicate,
        }

    async def _admit(self, identity: Identity, agent_id: str) -> Charged | None:
        """Charge the rate limits, and only then ask or begin anything: what is refused must cost nothing."""
        charged = await self._charge(identity)
        if charged is not None and not charged.allowed:
            raise over_the_limit(charged)
        try:
            await self._access.check(identity, agent_id)
        except ClientError as error:
            if error.is_for_later:
                await self._refund(identity, charged)
            raise
        return charged

    async def _accept(
        self, identity: Identity, charged: Charged | None, task: NewTask, now: float
    ) -> Reserved | Duplicate:
        try:
            return await self._tasks.accept(task, now)
        except (RedisUnavailable, NotYours, NameUsed, Busy) as error:
            await self._refund(identity, charged)
            if isinstance(error, RedisUnavailable):
                raise
            raise _refusal(error, task) from None

    async def _charge(self, identity: Identity) -> Charged | None:
        """None where Redis cannot tell, and that is to be let through."""
        try:
            return await self._limiter.charge(
                identity.tenant_id, identity.session_id, self._quotas[identity.tenant_tier]
            )
        except RedisUnavailable:
            if self._settings.rate_limit_failure == "open":
                return None
            raise

    async def _refund(self, identity: Identity, charged: Charged | None) -> None:
        if charged is None:
            return
        with suppress(RedisUnavailable):  # then one send less is allowed, for a while
            await self._limiter.refund(
                identity.tenant_id, identity.session_id, self._quotas[identity.tenant_tier]
            )

    async def _push_first(
        self,
        identity: Identity,
        context: Context,
        body: ChatBody,
        charged: Charged | None,
        task: NewTask,
        now: float,
    ) -> None:
        """Push the action of a task that this send has reserved; or take all back."""
        try:
            await self._push(identity, context, body, task, now)
        except ClientError:
            if await self._undo(identity, charged, task):
                raise

    async def _push(
        self, identity: Identity, context: Context, body: ChatBody, task: NewTask, now: float
    ) -> None:
        queue_name = task.fields["queue"]
        action = build_action(
            self._settings, identity, context, body, task_id=task.task_id, action_id=uuid4(),
            queue_name=queue_name, callback_queue=task.callback_list, now=now, deadline=task.deadline,
        )  # fmt: skip
        try:
            pushed = await self._queue.push(queue_name, task.task_id, "run", action)
        except QueueFull:
            raise ClientError(
                503,
                "queue_full",
                f"too many messages of tier {identity.tenant_tier} wait for agents",
                retry_after_s=5,
            ) from None
        if not pushed:  # this took so long that a router has given the task up
            raise redis_unavailable()

    async def _undo(self, identity: Identity, charged: Charged | None, task: NewTask) -> bool:
        """Take a task back; False if the same send, repeated, has pushed it meanwhile."""
        with suppress(RedisUnavailable):  # then a router does it
            # Voided first: who repeats the send now must not push what is forgotten then.
            if not await self._queue.void(task.fields["queue"], task.task_id, "run"):
                return False
            await self._tasks.forget(task)
        await self._refund(identity, charged)
        return True


def _refusal(error: Exception, task: NewTask) -> ClientError:
    if isinstance(error, NameUsed):
        detail = f"this name was used for another message (task {error.task_id}); use a new one for each"
        return ClientError(409, "idempotency_conflict", detail)
    if isinstance(error, Busy) and task.policy == "reject":
        detail = f"task {error.tasks[0]} of the session still runs; wait for its end, or cancel it"
        return ClientError(409, "session_busy", detail)
    if isinstance(error, Busy):
        detail = f"{len(error.tasks)} tasks of the session run; wait for one to end, or cancel it"
        return ClientError(429, "too_many_tasks", detail, retry_after_s=5, limit="session_tasks")
    return session_taken()


def _quotas(settings: Settings, tier: str) -> tuple[Quota, ...]:
    return (
        Quota("minute", settings.for_tier("sends_per_minute", tier), 60),
        Quota("day", settings.for_tier("sends_per_day", tier), 86_400),
        Quota("session", settings.for_tier("sends_per_session_hour", tier), 3_600),
    )
