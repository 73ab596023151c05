"""Finds callback lists that no router knew: of tenants whose first callback has just come.

Redis tells one of the routers the name of every list that is written to (``CLIENT TRACKING … BCAST PREFIX``).
Most names are known to it, so it listens at ease: what comes within a few milliseconds is read in one go. The
router that serves a list is woken by Redis itself (see `backplane.router.consumer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from backplane.errors import RedisUnavailable
from backplane.keys import Keys
from backplane.link import Link
from backplane.open_store import open_store
from backplane.redis_client import RedisTarget
from backplane.settings import Settings

_REST_S = 0.01
_SCAN_COUNT = 1_000


class Lookout:
    """One router's turn as the lookout, as long as `duty` says so.

    Args:
        on_lists: told names of lists that exist; must not raise.
        on_failure: told why Redis cannot be reached.
    """

    def __init__(
        self,
        target: RedisTarget,
        keys: Keys,
        settings: Settings,
        on_lists: Callable[[Iterable[bytes]], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._keys = keys
        self._on_lists = on_lists
        self._interval_s = settings.sweep_interval_s
        self._wanted = asyncio.Event()
        self._scan_now = asyncio.Event()
        self._over = asyncio.Event()
        self.store = open_store(
            target,
            "orchestrator-router-lookout",
            timeout_s=settings.redis_timeout_s,
            on_push=self._on_push,
            on_connect=self._listen,
            on_failure=on_failure,
            on_moved=self._scan_now.set,
        )

    @property
    def on_duty(self) -> bool:
        """Whether this router is the lookout."""
        return self._wanted.is_set()

    def duty(self, *, on: bool) -> None:
        """Begin or end to be the lookout."""
        if on:
            self._wanted.set()
            self._over.clear()
        else:
            self._wanted.clear()
            self._over.set()

    async def run(self) -> None:
        """Look out whenever it is this router's turn; returns only by cancellation."""
        while True:
            await self._wanted.wait()
            tasks = [asyncio.create_task(work) for work in (self.store.run(), self._scan_forever())]
            tasks.append(asyncio.create_task(self._until_over()))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_over(self) -> None:
        await self._over.wait()

    async def _listen(self, link: Link) -> None:
        await link.call("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._keys.callbacks_prefix)
        self._scan_now.set()  # what was written before the connection

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:  # Redis forgot what it had to tell (FLUSHALL, a full tracking table)
            self._scan_now.set()
            return
        self._on_lists(push[1])
        for link in self.store.links:
            link.rest(_REST_S)

    async def _scan_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._scan_now.wait()
            except TimeoutError:
                pass
            self._scan_now.clear()
            for link in self.store.links:
                with suppress(RedisUnavailable):  # connecting again scans again
                    await self._scan(link)

    async def _scan(self, link: Link) -> None:
        cursor: bytes | int = 0
        while True:
            cursor, found = await link.call(
                "SCAN", cursor, "MATCH", self._keys.callbacks_pattern, "COUNT", _SCAN_COUNT
            )
            self._on_lists(found)
            if int(cursor) == 0:
                return
