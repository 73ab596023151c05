"""Which pod owns which connection, in Redis: a pod's entries expire together with its heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec

from backplane.keys import Keys
from backplane.log import Logger
from backplane.scripts import DISOWN, OWN
from backplane.store import Store
from backplane.wire import Argument

_ENTRIES_A_COMMAND = 500


class Owned(NamedTuple):
    """A connection as it stands in Redis.

    Attributes:
        since: when it was accepted, seconds since 1970.
    """

    connection_id: str
    tenant_id: str
    tenant_tier: str
    session_id: str
    user_id: str | None
    since: int


class Ownership:
    """The connections of one pod.

    Args:
        ttl_ms: how long an entry outlives the pod's last heartbeat.
    """

    def __init__(self, store: Store, keys: Keys, pod_id: str, ttl_ms: int, log: Logger) -> None:
        self._store = store
        self._log = log
        self._ttl_ms = ttl_ms
        self._tasks: set[asyncio.Task[object]] = set()
        self.keys = (keys.pod_connections(pod_id), keys.pod_tenants(pod_id))

    def own(self, owned: Owned) -> None:
        """Enter a connection; if Redis is away, `rewrite` will."""
        self._spawn(self._enter(owned))

    def disown(self, connection_id: str, tenant_id: str) -> None:
        """Strike a connection out; if Redis is away, `rewrite` leaves it out."""
        self._spawn(self._store.script(DISOWN, list(self.keys), [connection_id, tenant_id]))

    async def rewrite(self, everything: Iterable[Owned]) -> None:
        """Enter all connections anew, after Redis was away for long enough to forget them.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self._store.call("DEL", *self.keys)
        calls = []
        for owned in everything:
            calls.append(self._enter(owned))
            if len(calls) == _ENTRIES_A_COMMAND:
                await asyncio.gather(*calls)
                calls.clear()
        await asyncio.gather(*calls)

    def _enter(self, owned: Owned) -> Coroutine[Any, Any, Any]:
        entry = msgspec.json.encode(owned._asdict())
        args: list[Argument] = [owned.connection_id, entry, owned.tenant_id, self._ttl_ms]
        return self._store.script(OWN, list(self.keys), args)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.debug("ownership_not_written", reason=str(task.exception()))


async def tenant_connections(
    store: Store, keys: Keys, pod_ids: Iterable[str], tenant_id: str
) -> dict[str, int]:
    """How many connections of a tenant each pod owns.

    Raises:
        RedisUnavailable: Redis did not answer.
    """
    ids = list(pod_ids)
    counts = await asyncio.gather(*[store.call("HGET", keys.pod_tenants(pod), tenant_id) for pod in ids])
    return {pod: int(count or 0) for pod, count in zip(ids, counts, strict=True)}
