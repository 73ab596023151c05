"""Accepts a chat message: the same for HTTP and sockets."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from backplane.errors import NotYours, QueueFull, RedisUnavailable
from backplane.keys import TIERS, Keys
from backplane.position import Position
from backplane.rate_limiter import Charged, Quota, RateLimiter
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from gateway.access import AgentAccess
from gateway.chat import ChatBody, Context, build_action, timeout_s
from gateway.errors import ClientError, redis_unavailable, session_taken
from gateway.identity import Identity, check_agent, check_scope
from gateway.rate_headers import over_the_limit, rate_headers


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
        limiter: RateLimiter,
        access: AgentAccess,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._log = log
        self._queue = queue
        self._limiter = limiter
        self._access = access
        self._quotas = {tier: _quotas(settings, tier) for tier in TIERS}
        self.accepted = 0

    async def send(self, identity: Identity, context: Context, body: ChatBody) -> Accepted:
        """Queue a message.

        Raises:
            ClientError: 403 what the token does not allow, or another user's session, 429 a rate limit,
                503 the queue is full or Redis away.
        """
        check_scope(identity.grant, "chat")
        check_agent(identity.grant, context.agent_id)
        keys, tier, now = self._keys, identity.tenant_tier, time.time()
        queue_name, task_id = keys.actions(tier), uuid4()
        try:
            callbacks = await self._log.callback_list(identity.tenant_id, identity.session_id)
            action = build_action(
                self._settings, identity, context, body,
                task_id=task_id, action_id=uuid4(), queue_name=queue_name, callback_queue=callbacks, now=now,
            )  # fmt: skip
            session = keys.session(callbacks, identity.session_id)
            position, charged = await self._admit(identity, context.agent_id, session)
            await self._push(identity, charged, queue_name, action)
        except RedisUnavailable:
            raise redis_unavailable() from None
        self.accepted += 1
        deadline = now + timeout_s(self._settings, tier, body.timeout)
        answer = {
            "success": True,
            "task_id": str(task_id),
            "message": "Message accepted; the answer comes over the session's sockets.",
            "queue_name": queue_name,
            "estimated_time": self._settings.for_tier("estimated_time_s", tier),
            "deadline_at": datetime.fromtimestamp(deadline, UTC).isoformat(),
            "cursor": str(position),
            "duplicate": False,
        }
        return Accepted(answer, () if charged is None else rate_headers(charged.standings))

    async def _admit(
        self, identity: Identity, agent_id: str, session: str
    ) -> tuple[Position, Charged | None]:
        """Charge the rate limits, and only then ask or begin anything: what is refused must cost nothing."""
        charged = await self._charge(identity)
        if charged is not None and not charged.allowed:
            raise over_the_limit(charged)
        try:
            await self._access.check(identity, agent_id)
            return await self._log.ensure(session, identity.owner), charged
        except NotYours:
            await self._refund(identity, charged)
            raise session_taken() from None
        except RedisUnavailable:
            await self._refund(identity, charged)
            raise
        except ClientError as error:
            if error.is_for_later:
                await self._refund(identity, charged)
            raise

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

    async def _push(
        self, identity: Identity, charged: Charged | None, queue_name: str, action: bytes
    ) -> None:
        try:
            await self._queue.push(queue_name, action)
        except QueueFull:
            await self._refund(identity, charged)
            raise ClientError(
                503,
                "queue_full",
                f"too many messages of tier {identity.tenant_tier} wait for agents",
                retry_after_s=5,
            ) from None


def _quotas(settings: Settings, tier: str) -> tuple[Quota, ...]:
    return (
        Quota("minute", settings.for_tier("sends_per_minute", tier), 60),
        Quota("day", settings.for_tier("sends_per_day", tier), 86_400),
        Quota("session", settings.for_tier("sends_per_session_hour", tier), 3_600),
    )
