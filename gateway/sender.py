"""Accepts a chat message: the same for HTTP and sockets."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from backplane.errors import QueueFull, RedisUnavailable
from backplane.keys import Keys
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from gateway.auth import Identity, check_agent
from gateway.chat import ChatBody, Context, build_action, timeout_s
from gateway.errors import ClientError, redis_unavailable


class Sender:
    """Turns accepted messages into actions on the AES's queues."""

    def __init__(self, settings: Settings, keys: Keys, log: SessionLog, queue: TaskQueue) -> None:
        self._settings = settings
        self._keys = keys
        self._log = log
        self._queue = queue
        self.accepted = 0

    async def send(self, identity: Identity, context: Context, body: ChatBody) -> dict[str, Any]:
        """Queue a message; returns the answer of ``POST /api/chat/send``.

        Its ``cursor`` is the session's position before the task: whoever reads from there misses nothing.

        Raises:
            ClientError: 403 an agent that the token does not allow, 503 the queue is full or Redis away.
        """
        check_agent(identity, context.agent_id)
        keys, tier, now = self._keys, identity.tenant_tier, time.time()
        queue_name, task_id = keys.actions(tier), uuid4()
        try:
            callbacks = await self._log.callback_list(identity.tenant_id, identity.session_id)
            action = build_action(
                self._settings, identity, context, body,
                task_id=task_id, action_id=uuid4(), queue_name=queue_name, callback_queue=callbacks, now=now,
            )  # fmt: skip
            position = await self._log.ensure(keys.session(callbacks, identity.session_id))
            await self._queue.push(queue_name, action)
        except QueueFull:
            raise ClientError(
                503, "queue_full", f"too many messages of tier {tier} wait for agents", retry_after_s=5
            ) from None
        except RedisUnavailable:
            raise redis_unavailable() from None
        self.accepted += 1
        deadline = now + timeout_s(self._settings, tier, body.timeout)
        return {
            "success": True,
            "task_id": str(task_id),
            "message": "Message accepted; the answer comes over the session's sockets.",
            "queue_name": queue_name,
            "estimated_time": self._settings.for_tier("estimated_time_s", tier),
            "deadline_at": datetime.fromtimestamp(deadline, UTC).isoformat(),
            "cursor": str(position),
            "duplicate": False,
        }
