"""The way up: actions to the queues from which the AES takes."""

from __future__ import annotations

from backplane.errors import QueueFull
from backplane.keys import Keys
from backplane.scripts import ENQUEUE
from backplane.store import Store
from backplane.wire import Argument

_MARK_KEPT_S = 6 * 3600  # longer than a task is only reserved, also while no router lives for hours

What = str
"""``run``, ``cancel``, or ``input-`` and the id of what was asked."""


class TaskQueue:
    """Pushes actions, each once.

    Args:
        store: through which.
        keys: names.
        most: actions that may wait in one queue.
    """

    def __init__(self, store: Store, keys: Keys, most: int) -> None:
        self._store = store
        self._keys = keys
        self._most = most

    async def push(self, queue_name: str, task_id: str, what: What, action: bytes) -> bool:
        """Push an action of a task, if it was not pushed before.

        Returns:
            Whether it is in the queue, or was; if not, `void` was called before.

        Raises:
            QueueFull: as many as allowed wait already.
            RedisUnavailable: Redis did not answer; trying again pushes nothing twice.
        """
        reply = await self._run(queue_name, task_id, what, action)
        if reply == b"full":
            raise QueueFull(f"{queue_name} holds {self._most} actions already")
        return reply == b"pushed"

    async def void(self, queue_name: str, task_id: str, what: What) -> bool:
        """Have an action never pushed from now on; returns False if it was pushed already.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        return await self._run(queue_name, task_id, what, b"") == b"void"

    async def is_full(self, queue_name: str) -> bool:
        """Whether as many actions as allowed wait.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        return await self.length(queue_name) >= self._most

    async def length(self, queue_name: str) -> int:
        """How many actions wait.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        return int(await self._store.call("LLEN", queue_name))

    async def _run(self, queue_name: str, task_id: str, what: What, action: bytes) -> bytes:
        mark = self._keys.action_mark(queue_name, task_id, what)
        args: list[Argument] = [action, self._most, _MARK_KEPT_S]
        return bytes(await self._store.script(ENQUEUE, [queue_name, mark], args))
