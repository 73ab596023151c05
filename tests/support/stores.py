"""The Redis side of chaos in its three shapes: where it is, who serves a key, which faults it can have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from redis.exceptions import RedisError

from tests.support.processes import wait_for
from tests.support.pusher import Address, Place
from tests.support.topology import HOST, SLOTS, SentinelSet, Server, TcpProxy, ValkeyCluster

Mark = Callable[[str], None]
Repair = Callable[[Mark, float, float], Awaitable[float]]
"""A fault and its repair: says whom it hits; gets the time until a restart (s), and 0 to 1 to choose by.

Returns for how long Redis itself took no writes there, in seconds.
"""

DOWN_S = 0.5
_ASK_AGAIN_S = 0.1
_MOVED_SLOTS = 200
_ALWAYS = ("appendonly yes", "appendfsync always", 'save ""')

T = TypeVar("T")


class Store(Place, Protocol):
    """A running Redis of some shape; an async context manager.

    Attributes:
        repairs: the faults that are this shape's own, by kind.
    """

    repairs: dict[str, Repair]

    async def __aenter__(self) -> Store: ...

    async def __aexit__(self, *error: object) -> None: ...

    def url_of(self, name: str) -> str:
        """The address that a process of that name is given."""

    def addresses(self) -> list[Address]:
        """The data servers that live."""

    def drop_packets(self, name: str, on: bool) -> None:
        """Let nothing through between the process of that name and Redis; or all again."""


class Standalone:
    """One server that writes to disk before it answers, and a proxy in front of it for each process."""

    replicas = 0

    def __init__(self, folder: Path) -> None:
        self._server = Server(folder, _ALWAYS)
        self._proxies: dict[str, TcpProxy] = {}
        self.repairs: dict[str, Repair] = {"redis_restart": self._restart}

    async def __aenter__(self) -> Standalone:
        await asyncio.to_thread(self._server.start)
        return self

    async def __aexit__(self, *_error: object) -> None:
        for proxy in self._proxies.values():
            proxy.close()
        self._server.kill()

    def url_of(self, name: str) -> str:
        proxy = self._proxies[name] = TcpProxy(self._server.port)
        return f"redis://{HOST}:{proxy.port}/0"

    def addresses(self) -> list[Address]:
        return [(HOST, self._server.port)]

    async def locate(self, _key: str) -> Address:
        return HOST, self._server.port

    def drop_packets(self, name: str, on: bool) -> None:
        self._proxies[name].blackhole(on)

    async def _restart(self, mark: Mark, _wait_s: float, _pick: float) -> float:
        mark("redis")
        began = time.monotonic()
        self._server.kill()
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(self._server.start)
        return time.monotonic() - began


class _Remembered(Generic[T]):
    """An answer that is asked for anew at most every tenth of a second, however many want it."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()
        self._answer: T | None = None
        self._asked_at = -1.0

    async def get(self) -> T:
        async with self._turn:
            if self._answer is None or time.monotonic() - self._asked_at > _ASK_AGAIN_S:
                try:
                    self._answer = await asyncio.to_thread(self._ask)
                except LookupError as error:
                    raise OSError(str(error)) from None
                finally:
                    self._asked_at = time.monotonic()
            return self._answer


class Sentinel:
    """A primary with two replicas under three Sentinels.

    All replicas have to confirm a push: ``SENTINEL FAILOVER`` lets the old primary and the second replica go
    on for a second beside the new primary, and what those two confirm to each other is lost.
    """

    def __init__(self, folder: Path) -> None:
        self.replicas = 2
        self._set = SentinelSet(folder)
        self._running = ExitStack()
        self._primary = _Remembered(self._set.primary)
        self.repairs: dict[str, Repair] = {"primary_kill": self._kill, "sentinel_failover": self._fail_over}

    async def __aenter__(self) -> Sentinel:
        await asyncio.to_thread(self._running.enter_context, self._set)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._running.close()

    def url_of(self, _name: str) -> str:
        return self._set.url

    def addresses(self) -> list[Address]:
        return [(HOST, server.port) for server in self._set.servers if server.running]

    async def locate(self, _key: str) -> Address:
        return HOST, (await self._primary.get()).port

    def drop_packets(self, name: str, on: bool) -> None:
        raise NotImplementedError

    async def _kill(self, mark: Mark, wait_s: float, _pick: float) -> float:
        mark(str(await asyncio.to_thread(self._set.primary)))
        old = await asyncio.to_thread(self._set.kill_primary)
        away_s = await self._replaced(old)
        await asyncio.sleep(wait_s)
        await asyncio.to_thread(old.start)
        await self._whole()
        return away_s

    async def _fail_over(self, mark: Mark, _wait_s: float, _pick: float) -> float:
        mark(str(await asyncio.to_thread(self._set.primary)))
        away_s = await self._replaced(await asyncio.to_thread(self._set.failover))
        await self._whole()
        return away_s

    async def _replaced(self, old: Server) -> float:
        """Wait for the new primary and its replica; the old one takes ten seconds to become another."""
        away_s = await asyncio.to_thread(self._set.wait_failed_over, old)
        await asyncio.to_thread(wait_for, self._has_replica, "the new primary has a replica")
        self.replicas = 1
        return away_s

    async def _whole(self) -> None:
        await asyncio.to_thread(self._set.wait_healthy)
        self.replicas = 2

    def _has_replica(self) -> bool:
        with suppress(RedisError, LookupError):
            return bool(self._set.primary().info("replication")["connected_slaves"] != "0")
        return False


class Cluster:
    """Three primaries with a replica each.

    Args:
        folder: for data and logs.
        keys: among which the moved slots are chosen, so that something lives in them.
    """

    replicas = 1

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self._cluster = ValkeyCluster(folder)
        self._keys = keys
        self._running = ExitStack()
        self._primaries = _Remembered(self._cluster.primaries)
        self.repairs: dict[str, Repair] = {"primary_kill": self._kill, "slots_moved": self._move}

    async def __aenter__(self) -> Cluster:
        await asyncio.to_thread(self._running.enter_context, self._cluster)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._running.close()

    def url_of(self, _name: str) -> str:
        return self._cluster.url

    def addresses(self) -> list[Address]:
        return [(HOST, node.port) for node in self._cluster.living()]

    async def locate(self, key: str) -> Address:
        slot = self._cluster.slot_of(key)
        for node, ranges in await self._primaries.get():
            if any(slot in part for part in ranges):
                return HOST, node.port
        raise OSError(f"nobody owns slot {slot}")

    def drop_packets(self, name: str, on: bool) -> None:
        raise NotImplementedError

    async def _kill(self, mark: Mark, wait_s: float, pick: float) -> float:
        primaries = await asyncio.to_thread(self._cluster.primaries)
        node = primaries[int(pick * len(primaries))].node
        mark(str(node))
        await asyncio.to_thread(self._cluster.kill_primary, node)
        away_s = await asyncio.to_thread(self._cluster.wait_failed_over, node)
        await asyncio.sleep(wait_s)
        await asyncio.to_thread(node.start)
        await asyncio.to_thread(self._cluster.wait_healthy)
        return away_s

    async def _move(self, mark: Mark, _wait_s: float, pick: float) -> float:
        """Move the slots around a callback list; half of the times slot by slot, as old tools do."""
        key = self._keys[int(pick * len(self._keys))]
        middle, atomic = self._cluster.slot_of(key), int(pick * 1000) % 2 == 0
        primaries = await asyncio.to_thread(self._cluster.primaries)
        source = next(primary for primary in primaries if any(middle in part for part in primary.slots))
        target = next(primary for primary in primaries if primary is not source)
        around = range(max(0, middle - _MOVED_SLOTS // 2), min(SLOTS, middle + _MOVED_SLOTS // 2))
        slots = [slot for slot in around if any(slot in part for part in source.slots)]
        mark(f"{len(slots)} {source.node}->{target.node}{' atomically' if atomic else ''}")

        def move() -> None:
            self._cluster.move_slots(slots, source.node, target.node, atomic=atomic)

        await asyncio.to_thread(move)
        return 0.0
