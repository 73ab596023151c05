"""Sees to it that every task ends: at its deadline if the AES says nothing, and when whoever cancelled it has
died.

The lists that have tasks stand in one sorted set by when the first of them is due, so what waits costs
nothing. The router that serves a list looks at it then. It puts the list off before it looks, and says
afterwards when the next task is due; in between, a send moves the list forward again, and the router that
dies leaves it for later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.scripts import PUT_OFF
from backplane.store import Store
from backplane.task_cancel import finish_cancel
from backplane.task_end import end_entry
from backplane.task_queue import TaskQueue
from backplane.tasks import Due, Tasks

_LOOK_EVERY_S = 0.2
_LOOK_AGAIN_S = 2.0
_PUT_OFF_S = 60.0  # later than any send moves its list to, so that what a send has moved shows


class Deadlines:
    """This router's share of the tasks that are due.

    Args:
        mine: whether this router serves a list.

    Attributes:
        timeouts: tasks that were ended at their deadline.
        cancelled: tasks that were cancelled in somebody's place.
        forgotten: sends that were never pushed, because a pod died.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        tasks: Tasks,
        queue: TaskQueue,
        mine: Callable[[bytes], bool],
        log: Logger,
    ) -> None:
        self._store = store
        self._keys = keys
        self._tasks = tasks
        self._queue = queue
        self._mine = mine
        self._log = log
        self._all = asyncio.Event()
        self._all.set()  # the router before this one may have died while it looked
        self._unfinished = set[bytes]()  # lists that may be put off, and nobody has said until when
        self.timeouts = 0
        self.cancelled = 0
        self.forgotten = 0

    def look_at_all(self) -> None:
        """Look at every list of this router's: it may have got some from one that died while it looked."""
        self._all.set()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self._look()
            except RedisRefused as error:
                self._log.error("deadlines_refused", reason=str(error))
                await asyncio.sleep(_LOOK_EVERY_S * 5)
            except RedisUnavailable:
                await self._store.wait_for(self._keys.due_lists)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        everything = self._all.is_set()
        self._all.clear()
        until = "+inf" if everything else str(int(time.time() * 1000))
        try:
            names = await self._store.call("ZRANGE", self._keys.due_lists, "-inf", until, "BYSCORE")
        except RedisUnavailable:
            if everything:
                self._all.set()
            raise
        for name in dict.fromkeys([*names, *self._unfinished]):
            if self._mine(name):
                await self._try_to_look_at(name)
            else:
                self._unfinished.discard(name)

    async def _try_to_look_at(self, name: bytes) -> None:
        """One list that cannot be looked at, as its server is away, keeps no other one waiting."""
        self._unfinished.add(name)
        try:
            await self._look_at(name)
        except RedisRefused as error:
            self._log.error("deadlines_refused", list=name.decode("utf-8", "replace"), reason=str(error))
        except RedisUnavailable:
            pass

    async def _look_at(self, name: bytes) -> None:
        tenant_id = self._keys.tenant_of(name)
        if tenant_id is None:
            await self._store.call("ZREM", self._keys.due_lists, name)
            self._unfinished.discard(name)
            return
        put_off = int((time.time() + _PUT_OFF_S) * 1000)
        await self._store.call("ZADD", self._keys.due_lists, "XX", put_off, name)
        try:
            following = await self._see_to_all(name.decode(), tenant_id)
        except RedisUnavailable:
            await self._put_off(name, put_off, time.time() + _LOOK_AGAIN_S)
            raise
        await self._put_off(name, put_off, following)

    async def _put_off(self, name: bytes, put_off: int, following: float | None) -> None:
        next_at = "" if following is None else int(following * 1000)
        await self._store.script(PUT_OFF, [self._keys.due_lists], [name, put_off, next_at])
        self._unfinished.discard(name)

    async def _see_to_all(self, callback_list: str, tenant_id: str) -> float | None:
        """See to all tasks of a list that are due; returns when the next one is."""
        while True:
            following, due = await self._tasks.due(callback_list)
            away = [task for task in due if not await self._see_to(callback_list, tenant_id, task)]
            if away or not due:
                return following

    async def _see_to(self, callback_list: str, tenant_id: str, due: Due) -> bool:
        """See to one task; False if a server is away that it needs: perhaps only that of its queue."""
        try:
            if due.status == "reserved":
                pushed = not await self._queue.void(due.queue, due.task_id, "run")
                self.forgotten += not pushed
                await self._tasks.settle(callback_list, due, pushed=pushed)
            elif due.status == "cancelling":
                self.cancelled += not await finish_cancel(
                    self._tasks, self._queue, callback_list, tenant_id, due
                )
            else:
                await self._time_out(callback_list, tenant_id, due)
        except RedisRefused as error:
            self._log.error("task_not_ended", tenant_id=tenant_id, task_id=due.task_id, reason=str(error))
        except RedisUnavailable:
            return False
        return True

    async def _time_out(self, callback_list: str, tenant_id: str, due: Due) -> None:
        now = time.time()
        entry = end_entry("timeout", due.task_id, due.session_id, tenant_id, due.tier, "", now)
        if not await self._tasks.end(callback_list, entry, "", now):
            self.timeouts += 1
            self._log.info(
                "task_timed_out", tenant_id=tenant_id, session_id=due.session_id, task_id=due.task_id
            )
