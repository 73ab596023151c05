"""The way up: actions to the queues from which the AES takes."""

from __future__ import annotations

from backplane.errors import QueueFull
from backplane.scripts import ENQUEUE
from backplane.store import Store


class TaskQueue:
    """Pushes actions.

    Args:
        store: through which.
        most: actions that may wait in one queue.
    """

    def __init__(self, store: Store, most: int) -> None:
        self._store = store
        self._most = most

    async def push(self, queue_name: str, action: bytes) -> None:
        """Push one action, once: it is not tried again after a lost reply.

        Raises:
            QueueFull: as many as allowed wait already.
            RedisUnavailable: Redis did not answer; whether the action was queued is unknown.
        """
        if await self._store.script(ENQUEUE, [queue_name], [action, self._most]) < 0:
            raise QueueFull(f"{queue_name} holds {self._most} actions already")

    async def length(self, queue_name: str) -> int:
        """How many actions wait.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        return int(await self._store.call("LLEN", queue_name))
