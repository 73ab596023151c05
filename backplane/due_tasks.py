"""The tasks at which a router has to look."""

from __future__ import annotations

import asyncio

from backplane.errors import RedisRefused
from backplane.keys import Keys
from backplane.scripts import DUE, LEFT, RELEASE
from backplane.settings import Settings
from backplane.store import Store
from backplane.task import DUE_FIELDS, ENDED, Due
from backplane.wire import Argument

_LOOK_AGAIN_S = 2.0
_HELD_S = 60.0  # one that waits for others is looked at so often, should nobody tell that they have ended
_TASKS_A_LOOK = 100


class DueTasks:
    """Finds them, and sees whether what some of them wait for has come.

    Args:
        store: through which.
    """

    def __init__(self, store: Store, keys: Keys, settings: Settings) -> None:
        self._store = store
        self._keys = keys
        self._kept_ms = int(settings.deadline_grace_s * 1000) + settings.task_kept_s * 1000

    async def due(self, callback_list: str) -> tuple[float | None, list[Due]]:
        """The tasks of a list at which to look now, and when to come again (seconds since 1970).

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        key, args = self._keys.due(callback_list), [_TASKS_A_LOOK, int(_LOOK_AGAIN_S * 1000)]
        following, *members = await self._store.script(DUE, [key], list[Argument](args))
        told = await asyncio.gather(*[self._due(callback_list, member.decode()) for member in members])
        found = [due for due in told if due.status and due.status not in ENDED]
        gone = [
            member for member, due in zip(members, told, strict=True) if not due.status or due.status in ENDED
        ]
        if gone:
            await self._store.call("ZREM", key, *gone)
        return int(following) / 1000 if following else None, found

    async def _due(self, callback_list: str, member: str) -> Due:
        what, _, task_id = member.rpartition(" ")
        try:
            record = await self._store.call("HMGET", self._keys.task(callback_list, task_id), *DUE_FIELDS)
        except RedisRefused:  # something else stands there: it is no task, and must not hide the others
            record = []
        return Due(task_id, *(_text(part) for part in record))._replace(what=what)

    async def release(self, callback_list: str, due: Due) -> Due | None:
        """Let a task go on that waits for others of its session: it is reserved then, and its time runs.

        Returns:
            The task as it is then; None if it still waits, or does no longer.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = self._keys
        base = keys.session(callback_list, due.session_id)
        names = [keys.task(callback_list, due.task_id), keys.due(callback_list), f"{base}:tasks"]
        args: list[Argument] = [due.task_id, self._kept_ms, int(_HELD_S * 1000)]
        done, *deadline = await self._store.script(RELEASE, names, args)
        return due._replace(status="reserved", deadline=str(deadline[0])) if done else None

    async def is_left_alone(self, callback_list: str, due: Due, connections: int) -> bool:
        """Whether nobody has been connected to a task's session for as long as it waits for somebody.

        Args:
            connections: that its session has.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = self._keys
        names = [keys.task(callback_list, due.task_id), keys.due(callback_list)]
        names.append(keys.session(callback_list, due.session_id))
        (alone,) = await self._store.script(LEFT, names, [due.task_id, connections])
        return bool(alone)


def _text(reply: bytes | None) -> str:
    return "" if reply is None else reply.decode("utf-8", "replace")
