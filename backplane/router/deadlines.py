"""Sees to it that every task goes on and ends: at its deadline if the AES says nothing, when who cancelled it
has died, when nobody is left who waits for it; and pushes what has waited for other tasks to end.

The lists that have tasks stand in one sorted set by when the first of them is due, so what waits costs
nothing. The router that serves a list looks at it then. It puts the list off before it looks, and says
afterwards when the next task is due; in between, a send moves the list forward again, and the router that
dies leaves it for later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from backplane.connection_counts import session_connections
from backplane.due_tasks import DueTasks
from backplane.errors import QueueFull, RedisRefused, RedisUnavailable, UnknownTask
from backplane.keys import Keys
from backplane.log import Logger
from backplane.metrics import SLOW_S, Histogram
from backplane.scripts import DUE_LISTS, PUT_OFF
from backplane.store import Store
from backplane.task import ENDED, Due, Found
from backplane.task_cancel import finish_cancel
from backplane.task_end import end_entry, restarted
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks

_LOOK_EVERY_S = 0.2
_LOOK_AGAIN_S = 2.0
_LISTS_AT_ONCE = 16
_PAGES_A_LOOK = 10
_PUT_OFF_S = 60.0  # later than any send moves its list to, so that what a send has moved shows


class Deadlines:
    """This router's share of the tasks that are due.

    Args:
        mine: whether this router serves a list.
        on_ended: told of tasks that were ended here: whose, which, how.
        lateness: told by how much tasks without an answer were ended after their deadline (s).

    Attributes:
        timeouts: tasks that were ended at their deadline.
        cancelled: tasks that were cancelled in somebody's place.
        left_alone: tasks that were cancelled because nobody was left.
        released: tasks that had waited for others.
        failures: times that a task could not be seen to for another reason than that Redis was away.
        forgotten: sends that were never pushed, because a pod died.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        tasks: Tasks,
        due: DueTasks,
        queue: TaskQueue,
        mine: Callable[[bytes], bool],
        log: Logger,
        on_ended: Callable[[str, Due, str], None] = lambda _tenant_id, _due, _outcome: None,
        lateness: Histogram | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._tasks = tasks
        self._due = due
        self._queue = queue
        self._mine = mine
        self._log = log
        self._on_ended = on_ended
        self._lateness = lateness or Histogram(SLOW_S)
        self._all = asyncio.Event()
        self._all.set()  # the router before this one may have died while it looked
        self._wanted = set[bytes]()  # lists to look at whatever is said of them
        self._looks: dict[bytes, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._soon = asyncio.Event()
        self.timeouts = 0
        self.cancelled = 0
        self.left_alone = 0
        self.released = 0
        self.forgotten = 0
        self.failures = 0

    def look_at_all(self) -> None:
        """Look at every list of this router's: it may have got some from one that died while it looked."""
        self._all.set()

    def look_soon(self, callback_list: str) -> None:
        """Look at a list that this router has written to."""
        self._wanted.add(callback_list.encode())
        self._soon.set()

    async def find_forgotten(self, names: list[bytes]) -> None:
        """See to it that lists which have tasks are known to have them: a failover may have lost that.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys, reads = self._keys, list[Awaitable[Any]]()
        for name in names:
            reads.append(self._store.call("ZRANGE", keys.due(name.decode()), 0, 0, "WITHSCORES"))
        firsts = await asyncio.gather(*reads, return_exceptions=True)
        found = [
            (int(first[0][1]), name)
            for name, first in zip(names, firsts, strict=True)
            if isinstance(first, list) and first
        ]
        if found:
            pairs = [part for pair in found for part in pair]
            await self._store.call("ZADD", keys.due_lists, "LT", *pairs)

    async def run(self) -> None:
        """Look again and again until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except RedisRefused as error:
                    self._log.error("deadlines_refused", reason=str(error))
                    await asyncio.sleep(_LOOK_EVERY_S * 5)
                except RedisUnavailable:
                    await self._store.wait_for(self._keys.due_lists)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._soon.wait()
        finally:
            for look in self._looks.values():
                look.cancel()
            await asyncio.gather(*self._looks.values(), return_exceptions=True)

    async def _look(self) -> None:
        """Begin to look at the lists that are due; none keeps another one waiting."""
        everything = self._all.is_set()
        self._all.clear()
        self._soon.clear()
        try:
            now_ms, *names = await self._store.script(DUE_LISTS, [self._keys.due_lists], [int(everything)])
        except RedisUnavailable:
            if everything:
                self._all.set()
            raise
        for name in dict.fromkeys([*names, *self._wanted]):
            if name in self._looks:
                continue
            if self._mine(name):
                self._wanted.discard(name)
                look = asyncio.create_task(self._try_to_look_at(name, now_ms / 1000))
                self._looks[name] = look
                look.add_done_callback(partial(self._looked, name))
            elif name in self._wanted:  # the router that serves it is told
                await self._store.call("ZADD", self._keys.due_lists, "LT", now_ms, name)
                self._wanted.discard(name)

    def _looked(self, name: bytes, look: asyncio.Task[None]) -> None:
        del self._looks[name]
        if not look.cancelled() and look.exception() is not None:
            self._log.error("deadlines_died", exc_info=look.exception())
            self._wanted.add(name)

    async def _try_to_look_at(self, name: bytes, now: float) -> None:
        try:
            async with self._places:
                await self._look_at(name, now)
        except RedisRefused as error:
            self._log.error("deadlines_refused", list=name.decode("utf-8", "replace"), reason=str(error))
            self._wanted.add(name)
        except RedisUnavailable:
            self._wanted.add(name)  # it may have been put off, and nobody has said until when

    async def _look_at(self, name: bytes, now: float) -> None:
        tenant_id = self._keys.tenant_of(name)
        if tenant_id is None:
            await self._store.call("ZREM", self._keys.due_lists, name)
            return
        put_off = int((now + _PUT_OFF_S) * 1000)
        await self._store.call("ZADD", self._keys.due_lists, "XX", put_off, name)
        try:
            following = await self._see_to_all(name.decode(), tenant_id, now)
        except RedisUnavailable:
            await self._put_off(name, put_off, now + _LOOK_AGAIN_S)
            raise
        await self._put_off(name, put_off, following)

    async def _put_off(self, name: bytes, put_off: int, following: float | None) -> None:
        next_at = "" if following is None else int(following * 1000)
        await self._store.script(PUT_OFF, [self._keys.due_lists], [name, put_off, next_at])

    async def _see_to_all(self, callback_list: str, tenant_id: str, now: float) -> float | None:
        """See to the tasks of a list that are due; returns when the next one is."""
        for _ in range(_PAGES_A_LOOK):
            following, due = await self._due.due(callback_list)
            seen_to = await asyncio.gather(*[self._see_to(callback_list, tenant_id, task) for task in due])
            if not due or not all(seen_to):
                return following
        return now

    async def _see_to(self, callback_list: str, tenant_id: str, due: Due) -> bool:
        """See to one task; False if a server is away that it needs: perhaps only that of its queue."""
        try:
            if due.what == "pending":
                await self._tasks.catch_up(callback_list, due.session_id, due.task_id)
            elif due.what == "left":
                await self._see_who_is_left(callback_list, tenant_id, due)
            elif due.status == "held":
                await self._release(callback_list, tenant_id, due)
            elif due.status == "reserved" and due.action:
                await self._push(callback_list, tenant_id, due)
            elif due.status == "reserved":
                pushed = not await self._queue.void(due.queue, due.task_id, "run")
                self.forgotten += not pushed
                await self._tasks.settle(callback_list, due, pushed=pushed)
            elif due.status == "cancelling":
                ended = await finish_cancel(self._tasks, self._queue, callback_list, tenant_id, due)
                if not ended:
                    self.cancelled += 1
                    self._on_ended(tenant_id, due, "cancelled")
            else:
                await self._time_out(callback_list, tenant_id, due)
        except RedisRefused as error:
            self.failures += 1
            self._log.error("task_not_ended", tenant_id=tenant_id, task_id=due.task_id, reason=str(error))
        except RedisUnavailable:
            return False
        except Exception:  # noqa: BLE001  # a record that nobody can use must not keep the others waiting
            self.failures += 1
            self._log.exception("task_unusable", tenant_id=tenant_id, task_id=due.task_id)
        return True

    async def _see_who_is_left(self, callback_list: str, tenant_id: str, due: Due) -> None:
        connections = await session_connections(self._store, self._keys, tenant_id, due.session_id)
        if not await self._due.is_left_alone(callback_list, due, connections):
            return
        found = Found(callback_list, {"session_id": due.session_id})
        with suppress(UnknownTask):
            due = await self._tasks.begin_cancel(found, due.task_id, "*", "nobody_left")
            if due.status not in ENDED and not await finish_cancel(
                self._tasks, self._queue, callback_list, tenant_id, due
            ):
                self.left_alone += 1
                self._on_ended(tenant_id, due, "cancelled")

    async def _release(self, callback_list: str, tenant_id: str, due: Due) -> None:
        released = await self._due.release(callback_list, due)
        if released is not None:
            await self._push(callback_list, tenant_id, released)

    async def _push(self, callback_list: str, tenant_id: str, due: Due) -> None:
        """Push the action of a task that has waited; it stays reserved, and due, until that is done."""
        now, deadline = time.time(), int(due.deadline) / 1000
        try:
            pushed = await self._queue.push(
                due.queue, due.task_id, "run", restarted(due.action, now, deadline)
            )
        except QueueFull:
            # Once it is out of time nobody pushes it any more, or its end would come before its action.
            if now < deadline or not await self._queue.void(due.queue, due.task_id, "run"):
                return
            pushed = False
        if pushed:
            self.released += 1
            await self._tasks.settle(callback_list, due, pushed=True)
        else:
            await self._time_out(callback_list, tenant_id, due)

    async def _time_out(self, callback_list: str, tenant_id: str, due: Due) -> None:
        now, traceparent = time.time(), self._tasks.traceparent(due.task_id, due.traceparent)
        entry = end_entry("timeout", due.task_id, due.session_id, tenant_id, due.tier, "", now, traceparent)
        if not await self._tasks.end(callback_list, entry, "", now):
            self.timeouts += 1
            if due.deadline.isdecimal():
                self._lateness.observe(max(0.0, time.time() - int(due.deadline) / 1000))
            self._on_ended(tenant_id, due, "timeout")
            self._log.info(
                "task_timed_out", tenant_id=tenant_id, session_id=due.session_id, task_id=due.task_id
            )
