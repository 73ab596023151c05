"""Moves what waits on this router's callback lists: the router's main loop.

A list is watched from the moment in which it was found empty (``CLIENT TRACKING … OPTIN``): Redis tells the
one router that serves it, once, that it was written to. Its name is then put in line; workers take names from
the line and move a few batches each, so that a busy tenant holds one worker and not the line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from backplane.due_tasks import DueTasks
from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.link import Link
from backplane.log import Logger
from backplane.open_store import open_store
from backplane.probes import Probes
from backplane.redis_client import RedisTarget
from backplane.router.backlog import Backlog
from backplane.router.deadlines import Deadlines
from backplane.router.depths import Depths
from backplane.router.leases import Leases
from backplane.router.line import Line
from backplane.router.lookout import Lookout
from backplane.router.metrics import RouterMetrics
from backplane.router.transfer import Transfer
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks
from backplane.tracing import NO_TRACER, Tracer
from backplane.wire import Reply, forget

_BATCHES_A_TURN = 4
_REMEMBER_LISTS_S = 7 * 86_400
_TELL_AGAIN_S = 3_600
_LISTS_A_LOOK = 500
_NOT_TOLD = 0.0
_LOOKOUT = b"lookout"  # whose turn it is, is decided like who serves a list of this name


class Consumer:
    """Moves callbacks of this router's share of all tenants while its tasks run.

    Args:
        target: where Redis is.
        keys: its names.
        settings: batch sizes and intervals.
        log: gets what an operator should know.
        router_id: of this process.
        tracer: gets spans.
    """

    def __init__(
        self,
        target: RedisTarget,
        keys: Keys,
        settings: Settings,
        log: Logger,
        router_id: str,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._keys = keys
        self._log = log
        self._settings = settings
        self.store = open_store(
            target,
            "orchestrator-router",
            timeout_s=settings.redis_timeout_s,
            on_push=self._on_push,
            channels=lambda: (keys.new_lists,),
            on_connect=self._listen,
            on_change=self._on_change,
            on_failure=self._on_failure,
            on_moved=self._on_moved,
        )
        self.commands = open_store(
            target,
            "orchestrator-router-commands",
            timeout_s=settings.redis_timeout_s,
            on_change=self._on_commands,
            on_failure=self._on_failure,
        )
        self.metrics = RouterMetrics(settings, tracer)
        self.leases = Leases(self.commands, keys, router_id, settings.router_lease_s, self._on_view)
        self.deadlines = Deadlines(
            self.commands,
            keys,
            Tasks(self.commands, keys, settings),
            DueTasks(self.commands, keys, settings),
            TaskQueue(self.commands, keys, settings.actions_queue_max),
            self.leases.mine,
            log,
            lambda tenant_id, due, outcome: self.metrics.named.task_ended(
                tenant_id, due.tier, due.agent_id, outcome
            ),
            self.metrics.lateness,
        )
        self.transfer = Transfer(
            self.store, self.commands, keys, settings, log, self.deadlines.look_soon, tracer, self.metrics
        )
        self.depths = Depths(self.commands, keys, self.leases.mine)
        self.lookout = Lookout(target, keys, settings, self._on_seen, self._on_failure)
        self.probes = Probes(
            self.store,
            lambda number: keys.router_probe(router_id, number),
            settings.probe_interval_s,
            self._send_probe,
        )
        self._line = Line()
        self._busy: set[bytes] = set()
        self._again: set[bytes] = set()  # of the busy ones, those that were written to meanwhile
        self._stuck: set[bytes] = set()  # others' lists that this router has taken on
        self._refused: set[bytes] = set()  # those that Redis refused to serve, until they are tried again
        self._since: dict[bytes, float] = {}  # list -> since when something waits there and nothing moves
        self._backlogs: dict[bytes, Backlog] = {}  # of lists on which something waits
        self._known: dict[bytes, float] = {}  # list -> when it was last told to `callback_lists`
        self._mine: set[bytes] = set()
        self._ignored: set[bytes] = set()
        self._seen_waiting: dict[bytes, bytes] = {}  # others' list -> its fence when it was last looked at
        self._sweep_now = asyncio.Event()
        self._divide()

    def tasks(self) -> dict[str, Any]:
        """The long-lived coroutines of the consumer, by name."""
        workers = {f"worker-{n}": self._work() for n in range(self._settings.transfer_concurrency)}
        return {
            "store": self.store.run(),
            "commands": self.commands.run(),
            "lookout": self.lookout.run(),
            "leases": self.leases.run(),
            "probes": self.probes.run(),
            "sweep": self._sweep_forever(),
            "deadlines": self.deadlines.run(),
            "depths": self.depths.run(),
            **workers,
        }

    @property
    def lists_served(self) -> int:
        """How many callback lists are this router's."""
        return len(self._mine)

    @property
    def lists_waiting(self) -> int:
        """On how many of them something waits."""
        return len(self._since)

    @property
    def routers(self) -> int:
        """How many routers have a lease."""
        return len(self.leases.routers)

    @property
    def is_lookout(self) -> bool:
        """Whether this router finds new lists."""
        return self.lookout.on_duty

    @property
    def oldest_s(self) -> float:
        """For how long the oldest callback has been waiting on one of them."""
        now = time.monotonic()
        return max((backlog.age_s(now) for backlog in self._backlogs.values()), default=0.0)

    @property
    def waiting(self) -> int:
        """How many callbacks wait on them, as far as is known."""
        return sum(backlog.length for backlog in self._backlogs.values())

    @property
    def _stuck_s(self) -> float:
        """For how long something has been waiting on one of them from which nothing was moved."""
        return max(0.0, time.monotonic() - min(self._since.values())) if self._since else 0.0

    def problem(self) -> str | None:
        """Why this router does not do its work; None if it does."""
        if not any(link.up for link in self.commands.links):
            return f"no connection to Redis for commands: {self.commands.last_error}"
        if self.leases.refused:
            return f"Redis refuses the lease, so others may serve the same lists: {self.leases.refused}"
        problem = self.probes.problem()
        if problem is None and self._stuck_s > self._settings.stuck_after_s:
            return f"a callback has been waiting for {self._stuck_s:.0f} s, and none was moved"
        return problem

    # Whose lists.

    def _divide(self) -> set[bytes]:
        """Work out which lists are this router's; returns those that were not before."""
        mine = {name for name in self._known if self.leases.mine(name)}
        gained, self._mine = mine - self._mine, mine
        self._since = {name: at for name, at in self._since.items() if name in mine}
        self._backlogs = {name: backlog for name, backlog in self._backlogs.items() if name in mine}
        self.lookout.duty(on=self.leases.mine(_LOOKOUT))
        return gained

    def _on_view(self) -> None:
        gained = self._divide()
        self._log.info(
            "lists_divided",
            routers=len(self.leases.routers),
            lists=len(self._mine),
            gained=len(gained),
            lookout=self.lookout.on_duty,
        )
        self._seen_waiting.clear()
        self._sweep_now.set()
        self.deadlines.look_at_all()
        # The others may have learnt of lists, or may learn of the view, a moment later than this router.
        asyncio.get_running_loop().call_later(self._settings.router_lease_s, self._sweep_now.set)

    def _learn(self, names: Iterable[bytes]) -> list[bytes]:
        """Take note of lists; returns those of this router's that are new to it."""
        gained = []
        for name in names:
            if name in self._known or name in self._ignored:
                continue
            if self._keys.tenant_of(name) is None:
                self._ignore(name)
                continue
            self._known[name] = _NOT_TOLD
            if self.leases.mine(name):
                self._mine.add(name)
                gained.append(name)
        return gained

    def _on_seen(self, names: Iterable[bytes]) -> None:
        """The lookout has seen lists that were written to, most of them known."""
        new = [name for name in names if name not in self._known and name not in self._ignored]
        if not new:
            return
        mine = self._learn(new)
        # Also the own ones: in the eyes of a router that has just come they may be another's already.
        told = [name for name in new if name in self._known]
        for name in told:
            self._remember(name)
        if told:
            with suppress(RedisUnavailable):  # else they are in the register, or will be seen waiting
                self.commands.publish(self._keys.new_lists, b"\n".join(told)).add_done_callback(forget)
        self._enqueue(mine)

    def _ignore(self, name: bytes) -> None:
        """A name that begins like a callback list and is none; nobody's callbacks can be there."""
        if len(self._ignored) < 1_000:
            self._ignored.add(name)
            self._log.warning("list_ignored", list=ascii(name.decode("utf-8", "replace"))[:200])

    def _remember(self, name: bytes) -> None:
        """Tell other routers, and this one after a restart, that the list exists; once an hour is enough."""
        now = time.time()
        if now - self._known.get(name, 0.0) > _TELL_AGAIN_S:
            try:
                told = self.commands.call("ZADD", self._keys.callback_lists, int(now), name)
            except RedisUnavailable:
                return
            self._known[name] = now
            told.add_done_callback(forget)

    # Wake-up.

    async def _listen(self, link: Link) -> None:
        """On every new connection: watches went with the old one, and so did what it had to tell."""
        await link.call("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
        self._sweep_now.set()

    def _on_change(self, link: Link, up: bool) -> None:
        if up:
            self._log.info("redis_connected", server=str(link.address))
        else:
            self.probes.lost()
            self._log.warning("redis_lost", server=str(link.address), reason=link.last_error)

    def _on_moved(self) -> None:
        self._sweep_now.set()

    def _on_commands(self, _link: Link, up: bool) -> None:
        if up:
            self._sweep_now.set()  # the register may have been out of reach
        else:
            self.probes.lost()

    def _on_failure(self, reason: str) -> None:
        self._log.error("redis_unreachable", reason=reason)

    def _on_push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"invalidate":
            if push[1] is None:  # Redis forgot what it had to tell (FLUSHALL, a full tracking table)
                self._sweep_now.set()
                return
            for name in push[1]:
                if name in self._mine:
                    self._enqueue((name,))
                else:
                    self.probes.heard(name)
        elif kind in {b"message", b"smessage"}:
            self._enqueue(self._learn(push[2].split(b"\n")))

    def _send_probe(self, link: Link, name: str, text: str) -> asyncio.Future[Reply]:
        """Watch a key, and have it written to over the other connection."""
        link.call("CLIENT", "CACHING", "YES").add_done_callback(forget)
        watched = link.call("GET", name)
        written: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def write(done: asyncio.Future[Reply]) -> None:
            try:
                done.result()
                self.commands.call("SET", name, text, "PX", 60_000).add_done_callback(finish)
            except RedisUnavailable as error:
                written.set_exception(error)

        def finish(done: asyncio.Future[Reply]) -> None:
            error = done.exception()
            if error is None:
                written.set_result(done.result())
            else:
                written.set_exception(error)

        watched.add_done_callback(write)
        return written

    def _enqueue(self, lists: Iterable[bytes], *, left_over: bool = False) -> None:
        now = time.monotonic()
        for name in lists:
            self._found(name, now)
            if name in self._busy:  # two workers on one list would only refuse each other's transfers
                self._again.add(name)
            else:
                self._line.join(name, left_over=left_over)

    def _found(self, name: bytes, now: float, length: int = 1) -> None:
        self._since.setdefault(name, now)
        self._backlogs.setdefault(name, Backlog()).found(now, length)

    def _nothing_waits(self, name: bytes) -> None:
        self._since.pop(name, None)
        self._backlogs.pop(name, None)

    # Moving.

    async def _work(self) -> None:
        while True:
            name = await self._line.next()
            self._busy.add(name)
            more = await self._turn(name)
            self._busy.discard(name)
            written = name in self._again
            self._again.discard(name)
            if not (more or written):
                self._stuck.discard(name)
            elif name in self._mine or name in self._stuck:
                self._enqueue([name], left_over=True)
            else:  # another router serves it by now
                self._nothing_waits(name)

    async def _turn(self, name: bytes) -> bool:
        """Move a few batches of one list; returns whether it should stand in line again at once."""
        tenant_id = self._keys.tenant_of(name)
        if tenant_id is None:
            self._ignore(name)
            return False
        callback_list, backlog = name.decode(), self._backlogs.setdefault(name, Backlog())
        try:
            more = await self.transfer.drain(callback_list, tenant_id, _BATCHES_A_TURN, backlog)
        except RedisRefused as error:
            self._log.error("transfer_refused", tenant_id=tenant_id, reason=str(error))
            if "WRONGTYPE" in str(error):  # that is no list; if it becomes one, a push tells
                self._nothing_waits(name)
                with suppress(RedisUnavailable):
                    self.store.watch(name).add_done_callback(forget)
            else:
                self._later(name)
            return False
        except RedisUnavailable:
            if self.store.serves(callback_list):
                self._later(name)
            return False  # else connecting again sweeps, which finds this list again
        self._remember(name)
        if more:
            self._since[name] = time.monotonic()  # what waits now has not been waiting in vain
        else:
            self._nothing_waits(name)
        return more

    def _later(self, name: bytes) -> None:
        """A list that Redis does not serve now (out of memory) is tried again, but not in a circle."""
        if name not in self._refused:
            self._refused.add(name)
            asyncio.get_running_loop().call_later(1.0, self._retry, name)

    def _retry(self, name: bytes) -> None:
        self._refused.discard(name)
        self._enqueue([name])

    # Safety sweep.

    async def _sweep_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.sweep_interval_s):
                    await self._sweep_now.wait()
            except TimeoutError:
                pass
            self._sweep_now.clear()
            await self._sweep()

    async def _sweep(self) -> None:
        """Look at every list of this router's: what waits is put in line, and the others are watched."""
        try:
            await self._read_register()
        except RedisUnavailable as error:
            if self.commands.connects:  # else it is not there yet, and sweeps when it is
                self._log.warning("register_unread", reason=str(error))
        await self._look(sorted(self._mine))
        await self._find_forgotten(sorted(self._mine))
        if self.lookout.on_duty:
            await self._look_after(sorted(self._known.keys() - self._mine))

    async def _read_register(self) -> None:
        register, forget_before = self._keys.callback_lists, int(time.time()) - _REMEMBER_LISTS_S
        await self.commands.call("ZREMRANGEBYSCORE", register, "-inf", forget_before)
        registered = set(await self.commands.call("ZRANGE", register, 0, -1))
        self._known = {
            name: at
            for name, at in self._known.items()
            if name in registered or at > forget_before or at == _NOT_TOLD
        }
        self._mine &= self._known.keys()
        self._line.forget(set(self._known))
        self._learn(registered)

    async def _look(self, names: list[bytes]) -> None:
        for start in range(0, len(names), _LISTS_A_LOOK):
            some = names[start : start + _LISTS_A_LOOK]
            lengths = await asyncio.gather(*map(self._length, some), return_exceptions=True)
            for name, length in zip(some, lengths, strict=True):
                if length == 0:
                    if name not in self._busy and name not in self._line:
                        self._nothing_waits(name)
                elif isinstance(length, int | RedisRefused):  # a refusal is told when its turn comes
                    self._enqueue((name,))

    async def _find_forgotten(self, names: list[bytes]) -> None:
        with suppress(RedisUnavailable):  # the next sweep does it
            for start in range(0, len(names), _LISTS_A_LOOK):
                await self.deadlines.find_forgotten(names[start : start + _LISTS_A_LOOK])

    async def _length(self, name: bytes) -> int:
        return int(await self.store.watch(name))

    async def _look_after(self, names: list[bytes]) -> None:
        """Take on a list of another router's on which something waits and nothing has moved for a sweep."""
        before, self._seen_waiting = self._seen_waiting, {}
        for start in range(0, len(names), _LISTS_A_LOOK):
            some = names[start : start + _LISTS_A_LOOK]
            states = await asyncio.gather(*map(self._state, some), return_exceptions=True)
            for name, state in zip(some, states, strict=True):
                if not isinstance(state, tuple) or state[0] == 0:
                    continue
                self._seen_waiting[name] = state[1]
                if before.get(name) == state[1]:
                    self._log.warning("list_stuck", list=name.decode(), callbacks=state[0])
                    self._stuck.add(name)
                    self._enqueue((name,))

    async def _state(self, name: bytes) -> tuple[int, bytes]:
        length = int(await self.commands.call("LLEN", name))
        if length == 0:
            return 0, b""
        return length, await self.commands.call("GET", self._keys.fence(name.decode())) or b""
