"""Which pod owns which connection, in Redis: a pod's entries expire together with its heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from backplane.errors import RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.presence import living
from backplane.store import Store
from backplane.wire import Reply

_COMMANDS_AT_ONCE = 1_000


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
        self._key = keys.pod_connections(pod_id)
        self.keys = (self._key,)

    def own(self, owned: Owned) -> None:
        """Enter a connection; if Redis is away, `rewrite` will."""
        try:
            for written in self._enter(owned):
                written.add_done_callback(self._done)
        except RedisUnavailable as error:
            self._log.debug("ownership_not_written", reason=str(error))

    def disown(self, connection_id: str) -> None:
        """Strike a connection out; if Redis is away, `rewrite` leaves it out."""
        try:
            self._store.call("HDEL", self._key, connection_id).add_done_callback(self._done)
        except RedisUnavailable as error:
            self._log.debug("ownership_not_written", reason=str(error))

    async def rewrite(self, everything: Iterable[Owned]) -> None:
        """Enter all connections anew, after Redis was away for long enough to forget them.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self._store.call("DEL", self._key)
        calls: list[asyncio.Future[Reply]] = []
        for owned in everything:
            calls += self._enter(owned)
            if len(calls) >= _COMMANDS_AT_ONCE:
                await asyncio.gather(*calls)
                calls.clear()
        await asyncio.gather(*calls)

    def _enter(self, owned: Owned) -> tuple[asyncio.Future[Reply], asyncio.Future[Reply]]:
        # Two commands and no script: this is most of what an opened connection writes.
        entry = msgspec.json.encode(owned._asdict())
        call = self._store.call
        return (
            call("HSET", self._key, owned.connection_id, entry),
            call("PEXPIRE", self._key, self._ttl_ms),
        )

    def _done(self, written: asyncio.Future[Reply]) -> None:
        if not written.cancelled() and written.exception() is not None:
            self._log.debug("ownership_not_written", reason=str(written.exception()))


async def list_connections(
    store: Store, keys: Keys, wanted: Mapping[str, str], limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Connections of the whole cluster, in no order.

    Args:
        wanted: fields of `Owned` and what they must be.
        limit: how many at most.

    Returns:
        The connections with their ``pod_id``, and whether there are more.

    Raises:
        RedisUnavailable: Redis did not answer.
    """
    found: list[dict[str, Any]] = []
    for pod_id in await living(store, keys, "pods"):
        cursor: bytes | int = b"0"
        while True:
            cursor, entries = await store.call("HSCAN", keys.pod_connections(pod_id), cursor, "COUNT", 1_000)
            for raw in entries[1::2]:
                entry = msgspec.json.decode(raw)
                if all(entry.get(name) == value for name, value in wanted.items()):
                    found.append({"pod_id": pod_id, **entry})
            if len(found) > limit:
                return found[:limit], True
            if cursor == b"0":
                break
    return found, False
