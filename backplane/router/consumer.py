"""Which callback lists have something waiting, and who moves it: the router's main loop.

Redis tells the router the name of every callback list that is written to, unknown tenants' too
(``CLIENT TRACKING … BCAST PREFIX``). Such a name is put in line once, however often it comes; workers take
names from the line and move a few batches each, so that a busy tenant holds one worker and not the line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.link import Link
from backplane.log import Logger
from backplane.redis_client import RedisTarget
from backplane.router.transfer import Transfer
from backplane.settings import Settings

_BATCHES_A_TURN = 4
_REMEMBER_LISTS_S = 7 * 86_400
_SCAN_COUNT = 1_000


class Consumer:
    """Moves callbacks of all tenants while its tasks run.

    Args:
        target: where Redis is.
        keys: its names.
        settings: batch sizes and intervals.
        log: gets what an operator should know.
    """

    def __init__(self, target: RedisTarget, keys: Keys, settings: Settings, log: Logger) -> None:
        self._keys = keys
        self._log = log
        self._settings = settings
        self.link = Link(
            target,
            "orchestrator-router",
            timeout_s=settings.redis_timeout_s,
            on_push=self._on_push,
            on_connect=self._listen,
            on_change=self._on_change,
            on_failure=lambda reason: log.error("redis_unreachable", reason=reason),
        )
        self.transfer = Transfer(self.link, keys, settings, log)
        self._ready: asyncio.Queue[bytes] = asyncio.Queue()  # bounded by _queued: a list stands in it once
        self._queued: set[bytes] = set()
        self._busy: set[bytes] = set()
        self._again: set[bytes] = set()  # of the busy ones, those that were written to meanwhile
        self._waiting: set[bytes] = set()  # those that Redis refused to serve, until they are tried again
        self._drained: set[bytes] = set()  # those that our own transfer emptied, not heard of since
        self._known: dict[bytes, float] = {}  # callback list -> when it was last told to `callback_lists`
        self._ignored: set[bytes] = set()
        self._sweep_now = asyncio.Event()

    def tasks(self) -> dict[str, Any]:
        """The long-lived coroutines of the consumer, by name."""
        workers = {f"worker-{n}": self._work() for n in range(self._settings.transfer_concurrency)}
        return {"link": self.link.run(), "sweep": self._sweep_forever(), **workers}

    @property
    def lists_known(self) -> int:
        """How many callback lists this router has seen."""
        return len(self._known)

    # Wake-up.

    async def _listen(self) -> None:
        """After every connect: tracking was lost with the old connection, and so was what it had to tell."""
        await self.link.call(
            "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._keys.callbacks_prefix, "NOLOOP"
        )
        self._sweep_now.set()

    def _on_change(self, up: bool) -> None:
        if up:
            self._log.info("redis_connected")
        else:
            self._log.warning("redis_lost", reason=self.link.last_error)

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:  # Redis forgot what it had to tell (FLUSHALL, a full tracking table)
            self._sweep_now.set()
        else:
            self._enqueue(push[1])

    def _enqueue(self, lists: Iterable[bytes]) -> None:
        for name in lists:
            if name in self._busy:  # two workers on one list would only refuse each other's transfers
                self._again.add(name)
            elif name not in self._queued:
                self._queued.add(name)
                self._ready.put_nowait(name)

    # Moving.

    async def _work(self) -> None:
        while True:
            name = await self._ready.get()
            self._queued.discard(name)
            self._busy.add(name)
            more = await self._turn(name)
            self._busy.discard(name)
            if more or name in self._again:
                self._again.discard(name)
                self._enqueue([name])

    async def _turn(self, name: bytes) -> bool:
        """Move a few batches of one list; returns whether it should stand in line again at once."""
        tenant_id = self._keys.tenant_of(name)
        if tenant_id is None:
            self._ignore(name)
            return False
        try:
            if name in self._drained:
                # Most likely this wake-up tells of our own trim (NOLOOP does not cover scripts).
                self._drained.discard(name)
                if await self.link.call("LLEN", name) == 0:
                    return False
            more = await self.transfer.drain(name.decode(), tenant_id, _BATCHES_A_TURN)
            if not more:
                self._drained.add(name)
            self._remember(name)
        except RedisRefused as error:
            self._log.error("transfer_refused", tenant_id=tenant_id, reason=str(error))
            if "WRONGTYPE" not in str(error):  # that is no list; if it becomes one, a push tells
                self._later(name)
            return False
        except RedisUnavailable:
            await self.link.wait_up()  # connecting sweeps, which finds this list again
            return True
        return more

    def _later(self, name: bytes) -> None:
        """A list that Redis refuses to serve now (out of memory) is tried again, but not in a circle."""
        if name not in self._waiting:
            self._waiting.add(name)
            asyncio.get_running_loop().call_later(1.0, self._retry, name)

    def _retry(self, name: bytes) -> None:
        self._waiting.discard(name)
        self._enqueue([name])

    def _ignore(self, name: bytes) -> None:
        """A name that begins like a callback list and is none; nobody's callbacks can be there."""
        if name not in self._ignored and len(self._ignored) < 1_000:
            self._ignored.add(name)
            self._log.warning("list_ignored", list=ascii(name.decode("utf-8", "replace"))[:200])

    def _remember(self, name: bytes) -> None:
        """Tell other routers, and this one after a restart, that the list exists; once an hour is enough."""
        now = time.time()
        if now - self._known.get(name, 0.0) > 3_600:
            self._known[name] = now
            future = self.link.call("ZADD", self._keys.callback_lists, int(now), name)
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    # Safety sweep.

    async def _sweep_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.sweep_interval_s):
                    await self._sweep_now.wait()
            except TimeoutError:
                pass
            self._sweep_now.clear()
            await self.link.wait_up()
            try:
                await self._sweep()
            except RedisUnavailable as error:
                self._log.warning("sweep_failed", reason=str(error))

    async def _sweep(self) -> None:
        """Put every callback list that exists in line: known ones at once, then those that a scan finds."""
        forget = int(time.time()) - _REMEMBER_LISTS_S
        await self.link.call("ZREMRANGEBYSCORE", self._keys.callback_lists, "-inf", forget)
        known = set(await self.link.call("ZRANGE", self._keys.callback_lists, 0, -1))
        self._known = {name: at for name, at in self._known.items() if at > forget}
        self._enqueue(await self._existing(sorted(known | self._known.keys())))
        cursor: bytes | int = 0
        while True:
            cursor, found = await self.link.call(
                "SCAN", cursor, "MATCH", self._keys.callbacks_pattern, "COUNT", _SCAN_COUNT
            )
            self._enqueue(found)
            if int(cursor) == 0:
                return

    async def _existing(self, names: list[bytes]) -> list[bytes]:
        existing = []
        for start in range(0, len(names), _SCAN_COUNT):
            slice_ = names[start : start + _SCAN_COUNT]
            replies = await asyncio.gather(*[self.link.call("EXISTS", name) for name in slice_])
            existing += [name for name, exists in zip(slice_, replies, strict=True) if exists]
        return existing
