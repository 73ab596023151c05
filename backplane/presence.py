"""Who lives: every process writes a summary of itself that expires without its heartbeats.

The summary's expiry is Redis's clock, so processes whose clocks differ agree on who is alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.store import Store

Summary = dict[str, Any]

MISSED_BEATS = 3
_AGAIN_S = 0.1


async def _nothing() -> None:
    """For processes that keep nothing else alive."""


class Presence:
    """One process's heartbeat.

    Args:
        store: through which it is written.
        keys: names.
        kind: ``pods`` or ``routers``.
        member_id: this process.
        interval_s: time between heartbeats; after `MISSED_BEATS` of them without one it counts as dead.
        summary: makes the JSON-able summary.
        renew: keys to keep alive together with it.
        on_forgotten: called when Redis had no summary any more (or not yet): a process that was stopped for
            a while counted as dead, and what was kept alive with it has gone too.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        kind: str,
        member_id: str,
        interval_s: float,
        summary: Callable[[], Summary],
        renew: tuple[str, ...] = (),
        on_forgotten: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._store = store
        self._members = keys.members(kind)
        self._key = keys.member(kind, member_id)
        self._member_id = member_id
        self._interval_s = interval_s
        self._summary = summary
        self._renew = renew
        self._on_forgotten = on_forgotten
        self._left = False
        self.ttl_ms = int(interval_s * 1000 * MISSED_BEATS)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            try:
                await self.beat()
            except RedisRefused:
                pass  # by the next beat it may be willing again
            except RedisUnavailable:
                await asyncio.sleep(min(self._interval_s, _AGAIN_S))
                continue
            await asyncio.sleep(self._interval_s)

    async def beat(self) -> None:
        """Write the summary once; nothing after `leave`."""
        if self._left:
            return
        call = self._store.call
        _, before, *_ = await asyncio.gather(
            call("SADD", self._members, self._member_id),
            call("SET", self._key, msgspec.json.encode(self._summary()), "PX", self.ttl_ms, "GET"),
            *[call("PEXPIRE", key, self.ttl_ms) for key in self._renew],
        )
        if before is None:
            await self._on_forgotten()

    async def leave(self) -> None:
        """Say goodbye: a process that stops cleanly is gone at once.

        A beat that is on its way was sent before, over the same connection.
        """
        self._left = True
        await asyncio.gather(
            self._store.call("SREM", self._members, self._member_id),
            self._store.call("DEL", self._key, *self._renew),
        )


async def living(store: Store, keys: Keys, kind: str) -> dict[str, Summary]:
    """The summaries of all live processes of a kind, by id; forgets the dead.

    Raises:
        RedisUnavailable: Redis did not answer.
    """
    ids = sorted(member.decode() for member in await store.call("SMEMBERS", keys.members(kind)))
    replies = await asyncio.gather(*[store.call("GET", keys.member(kind, member)) for member in ids])
    alive: dict[str, Summary] = {}
    for member, raw in zip(ids, replies, strict=True):
        if raw is None:
            await store.call("SREM", keys.members(kind), member)
        else:
            alive[member] = msgspec.json.decode(raw)
    return alive
