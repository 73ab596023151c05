"""Accepts a chat message: the same for HTTP and sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from backplane.errors import Busy, NameUsed, NotYours, QueueFull, RedisUnavailable
from backplane.keys import TIERS, Keys
from backplane.rate_limiter import Charged, Quota, RateLimiter
from backplane.session_log import SessionLog
from backplane.settings import BUSY_POLICIES, Settings
from backplane.task import Duplicate, NewTask, Reserved, send_name
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks
from gateway.access import AgentAccess
from gateway.chat import ChatBody, Context, build_action, context_id, fingerprint, question_entry, timeout_s
from gateway.errors import ClientError, redis_unavailable, session_taken
from gateway.identity import Identity, check_agent, check_scope
from gateway.metrics import PodMetrics
from gateway.rate_headers import over_the_limit, rate_headers
from gateway.send_trace import SendTrace, SendTraces
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


class _Send(NamedTuple):
    """A message that somebody sends, and the task that is to be made of it."""

    identity: Identity
    context: Context
    body: ChatBody
    task: NewTask
    charged: Charged | None
    trace: SendTrace


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
        traces: SendTraces,
        metrics: PodMetrics | None = None,
    ) -> None:
        self._metrics = metrics or PodMetrics(settings)
        self._settings = settings
        self._keys = keys
        self._log = log
        self._queue = queue
        self._tasks = tasks
        self._desk = desk
        self._limiter = limiter
        self._access = access
        self._traces = traces
        self._quotas = {tier: _quotas(settings, tier) for tier in TIERS}
        self.accepted = 0
        self.duplicates = 0

    async def send(self, identity: Identity, context: Context, body: ChatBody) -> Accepted:
        """Queue a message, or say what became of it if it was sent before.

        Raises:
            ClientError: 403 what the token does not allow, or another user's session, 409 its name was used
                for another message, or the session is busy, 429 a limit, 503 the queue is full or Redis away.
        """
        trace = self._traces.begin(identity, context)
        began, outcome = time.monotonic(), "failed"
        try:
            accepted = await self._send(identity, context, body, trace)
            outcome = "repeated" if accepted.answer["duplicate"] else "accepted"
            return accepted
        except ClientError as error:
            outcome = "refused" if error.status < 500 else "failed"
            trace.refused(error.error_code)
            raise
        except asyncio.CancelledError:
            outcome = "given_up"
            raise
        finally:
            self._metrics.count_send(identity.tenant_id, identity.tenant_tier, outcome)
            if outcome == "accepted" and accepted.answer["deadline_at"] is not None:  # else it is held
                took_s = time.monotonic() - began
                self._metrics.accepted(identity.tenant_tier, took_s, trace.sampled_trace_id)

    def failed_before(self) -> None:
        """A message has come of which it could not be found out whose it is."""
        self._metrics.send_failed()

    async def _send(self, identity: Identity, context: Context, body: ChatBody, trace: SendTrace) -> Accepted:
        check_scope(identity.grant, "chat")
        check_agent(identity.grant, context.agent_id)
        try:
            callbacks = await self._log.callback_list(identity.tenant_id, identity.session_id)
            task = self._new_task(identity, context, body, callbacks, trace)
            charged = await self._admit(identity, context.agent_id)
            trace.mark("charged")
            send = await self._with_policy(_Send(identity, context, body, task, charged, trace))
            accepted = await self._accept(send)
            if isinstance(accepted, Duplicate):
                answer = await self._repeat(send, accepted)
            else:
                answer = await self._begin(send, accepted)
        except RedisUnavailable:
            raise redis_unavailable() from None
        return Accepted(answer, () if send.charged is None else rate_headers(send.charged.standings))

    async def _begin(self, send: _Send, accepted: Reserved) -> dict[str, Any]:
        task, deadline = send.task, accepted.at + send.task.timeout_s
        send.trace.mark("accepted")
        self._desk.finish(task.callback_list, send.identity.tenant_id, accepted.interrupted)
        if accepted.held:
            self._desk.show_question(task)
        else:
            await self._push_first(send, accepted.at, deadline)
            self._desk.settle(task)
        self.accepted += 1
        send.trace.accepted(task.fields["queue"], duplicate=False, held=accepted.held)
        # What waits for others has no deadline before it goes on.
        ends = None if accepted.held else deadline
        return self._answer(send, str(accepted.position), ends, duplicate=False)

    async def _repeat(self, send: _Send, known: Duplicate) -> dict[str, Any]:
        """Push the action in the place of whoever should have done it, if nobody has."""
        await self._refund(send)
        task = send.task._replace(task_id=known.task_id)
        if known.queue:  # the tenant's tier may be another one by now
            task = task._replace(fields={**task.fields, "queue": known.queue})
        send.trace.became(known.task_id, known.traceparent)
        send = send._replace(task=task)
        if known.status == "reserved":
            await self._push(send, known.at, known.deadline or known.at + task.timeout_s)
        self.duplicates += 1
        send.trace.accepted(task.fields["queue"], duplicate=True)
        return self._answer(send, known.cursor, known.deadline, duplicate=True)

    def _new_task(
        self, identity: Identity, context: Context, body: ChatBody, callback_list: str, trace: SendTrace
    ) -> NewTask:
        settings, tier = self._settings, identity.tenant_tier
        names = (("key", context.idempotency_key), ("message", body.client_message_id))
        fields = {
            "tier": tier,
            "queue": self._keys.actions(tier),
            "agent_id": context.agent_id,
            "context": context_id(context),
        }
        task_id = trace.task_id
        if trace.given:
            fields["traceparent"] = trace.given
        if settings.echo_messages:
            fields["question"] = question_entry(
                identity, context, body, task_id, time.time(), trace.traceparent
            ).decode()
        time_s = timeout_s(settings, tier, body.timeout)
        return NewTask(
            task_id=task_id,
            callback_list=callback_list,
            session_id=identity.session_id,
            user=identity.owner,
            names=[send_name(kind, identity.session_id, name) for kind, name in names if name is not None],
            fingerprint=fingerprint(context, body),
            timeout_s=time_s,
            extended_s=max(time_s, settings.for_tier("task_extended_max_s", tier)),
            policy="",
            fields=fields,
            left_s=body.cancel_if_left_s,
        )

    async def _with_policy(self, send: _Send) -> _Send:
        """With the request's policy for busy sessions, else its tenant's, else everybody's."""
        of_tenant = "" if send.charged is None else send.charged.busy_policy
        of_all = of_tenant if of_tenant in BUSY_POLICIES else self._settings.busy_policy
        task = send.task._replace(policy=send.body.busy_policy or of_all)
        if task.policy == "interrupt" and await self._queue.is_full(task.fields["queue"]):
            await self._refund(send)  # nothing is ended for a message that cannot take its place
            raise _queue_full(send)
        if task.policy == "enqueue":
            now = time.time()  # it is pushed later, with the times of then
            task = task._replace(action=self._action(send, now, now + task.timeout_s))
        return send._replace(task=task)

    def _answer(self, send: _Send, cursor: str, deadline: float | None, *, duplicate: bool) -> dict[str, Any]:
        return {
            "success": True,
            "task_id": send.task.task_id,
            "trace_id": send.trace.trace_id,
            "message": "Message accepted; the answer comes over the session's sockets.",
            "queue_name": send.task.fields["queue"],
            "estimated_time": self._settings.for_tier("estimated_time_s", send.identity.tenant_tier),
            "deadline_at": None if deadline is None else datetime.fromtimestamp(deadline, UTC).isoformat(),
            "cursor": cursor,
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
            if error.is_for_later and charged is not None:
                await self._give_back(identity)
            raise
        return charged

    async def _accept(self, send: _Send) -> Reserved | Duplicate:
        try:
            return await self._tasks.accept(send.task)
        except (RedisUnavailable, NotYours, NameUsed, Busy) as error:
            await self._refund(send)
            if isinstance(error, RedisUnavailable):
                raise
            raise _refusal(error, send.task) from None

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

    async def _refund(self, send: _Send) -> None:
        if send.charged is not None:
            await self._give_back(send.identity)

    async def _give_back(self, identity: Identity) -> None:
        with suppress(RedisUnavailable):  # then one send less is allowed, for a while
            await self._limiter.refund(
                identity.tenant_id, identity.session_id, self._quotas[identity.tenant_tier]
            )

    async def _push_first(self, send: _Send, now: float, deadline: float) -> None:
        """Push the action of a task that this send has reserved; or take all back."""
        try:
            await self._push(send, now, deadline)
        except ClientError:
            if await self._undo(send):
                raise

    async def _push(self, send: _Send, now: float, deadline: float) -> None:
        task, action = send.task, self._action(send, now, deadline)
        try:
            pushed = await self._queue.push(task.fields["queue"], task.task_id, "run", action)
        except QueueFull:
            raise _queue_full(send) from None
        if not pushed:  # this took so long that a router has given the task up, or it was cancelled meanwhile
            raise redis_unavailable()
        send.trace.pushed(task.fields["queue"])

    def _action(self, send: _Send, now: float, deadline: float) -> bytes:
        task = send.task
        return build_action(
            self._settings, send.identity, send.context, send.body, task_id=task.task_id, action_id=uuid4(),
            queue_name=task.fields["queue"], callback_queue=task.callback_list, now=now, deadline=deadline,
            traceparent=send.trace.traceparent,
        )  # fmt: skip

    async def _undo(self, send: _Send) -> bool:
        """Take a task back; False if the same send, repeated, has pushed it meanwhile."""
        task = send.task
        with suppress(RedisUnavailable):  # then a router does it
            # Voided first: who repeats the send now must not push what is forgotten then.
            if not await self._queue.void(task.fields["queue"], task.task_id, "run"):
                return False
            await self._tasks.forget(task)
        await self._refund(send)
        return True


def _queue_full(send: _Send) -> ClientError:
    detail = f"too many messages of tier {send.identity.tenant_tier} wait for agents"
    return ClientError(503, "queue_full", detail, retry_after_s=5)


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
