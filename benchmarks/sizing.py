"""The figures that docs/operations.md computes with: what a connection, a message and a token cost whom.

    python -m benchmarks.sizing [--sockets 4000] [--messages 6000] [--tokens 20000] [--rate 2000]

Two pods, a router and a Valkey with an append-only file; all clients and the agent in this process. CPU is
the processes' own. Run it on the machines that you want to size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop
from redis.asyncio import Redis

from benchmarks.observing import Side
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Process

_OPENING_AT_ONCE = 50
_STREAMS = 50
_TOKEN = "word "
_PATIENCE_S = 60.0


@dataclass
class Used:
    """What processes have used so far: CPU (s), memory (KiB), and Redis's memory for data (bytes)."""

    pods_s: float
    routers_s: float
    valkey_s: float
    pods_kib: int
    data_bytes: int


async def look(cluster: Cluster, redis: Redis) -> Used:
    """Now."""

    def cpu_s(processes: Sequence[Process]) -> float:
        return sum(process.cpu_s() for process in processes)

    memory: Any = await redis.info("memory")
    return Used(
        cpu_s(cluster.pods),
        cpu_s(cluster.routers),
        cpu_s([cluster.valkey]),
        sum(pod.rss_kib() for pod in cluster.pods),
        int(memory["used_memory_dataset"]),
    )


def tell(what: str, count: int, before: Used, after: Used) -> None:
    """Print what one of them costs."""
    each = {
        "pods_us": (after.pods_s - before.pods_s) / count * 1e6,
        "router_us": (after.routers_s - before.routers_s) / count * 1e6,
        "valkey_us": (after.valkey_s - before.valkey_s) / count * 1e6,
        "pods_kib": (after.pods_kib - before.pods_kib) / count,
        "redis_kib": (after.data_bytes - before.data_bytes) / count / 1024,
    }
    print(f"{what} ({count}): " + " ".join(f"{name}={value:.2f}" for name, value in each.items()), flush=True)


class Sockets:
    """Many sockets that listen, each of a session of its own."""

    def __init__(self) -> None:
        self.open: list[LeanClient] = []
        self.greeted = 0

    def on_text(self, text: bytes) -> None:
        """Count those that are let in."""
        self.greeted += b"connection_ack" in text[:100]

    async def connect(self, cluster: Cluster, count: int) -> None:
        """Open so many."""
        gate = asyncio.Semaphore(_OPENING_AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                path = f"/ws/idle-{number}?tenant_id=tenant-{number % 50}&tenant_tier=free"
                pod = cluster.pods[number % len(cluster.pods)]
                socket = await connect(pod.port, path, self.on_text)
                assert socket is not None, "a socket was refused"
                self.open.append(socket)

        await asyncio.gather(*[one(number) for number in range(count)])
        async with asyncio.timeout(_PATIENCE_S):
            while self.greeted < count:
                await asyncio.sleep(0.01)


class Listener:
    """One client of an answer that is streamed.

    Attributes:
        characters: of it that have come.
    """

    def __init__(self) -> None:
        self.characters = 0

    def on_text(self, text: bytes) -> None:
        """Count what comes."""
        if b'"agent_chunk"' in text[:100]:
            self.characters += len(json.loads(text)["data"]["delta"])


async def stream(cluster: Cluster, redis: Redis, tokens: int, rate: float) -> None:
    """Have agents say so many tokens, ``rate`` a second, to clients that listen."""
    listeners, tasks = [Listener() for _ in range(_STREAMS)], [str(uuid4()) for _ in range(_STREAMS)]
    for number, listener in enumerate(listeners):
        path = f"/ws/stream-{number}?tenant_id=acme&tenant_tier=free&stream=1"
        pod = cluster.pods[number % len(cluster.pods)]
        assert await connect(pod.port, path, listener.on_text) is not None, "a socket was refused"
    began = time.monotonic()
    for number in range(tokens):
        session = number % _STREAMS
        data = {"delta": _TOKEN, "offset": number // _STREAMS * len(_TOKEN), "part": "text"}
        base = {"tenant_id": "acme", "session_id": f"stream-{session}", "task_id": tasks[session]}
        said = {**base, "action_type": "execution.chunk", "data": data}
        await redis.lpush("orchestrator:acme:callbacks", json.dumps(said))
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    async with asyncio.timeout(_PATIENCE_S):
        while sum(listener.characters for listener in listeners) < tokens * len(_TOKEN):
            await asyncio.sleep(0.05)


async def measure(cluster: Cluster, options: argparse.Namespace) -> None:
    """Print all figures."""
    async with Redis(port=cluster.redis_port) as redis:
        before = await look(cluster, redis)
        pods, router = (
            sum(p.rss_kib() for p in some) // len(some) for some in (cluster.pods, cluster.routers)
        )
        print(f"empty: pod_mib={pods / 1024:.0f} router_mib={router / 1024:.0f}", flush=True)
        sockets = Sockets()
        await sockets.connect(cluster, options.sockets)
        after = await look(cluster, redis)
        tell("connection", options.sockets, before, after)
        side = Side(cluster, addresses=[])
        async with side.open(100):
            await side.round(options.messages // 10)
            before = await look(cluster, redis)
            await side.round(options.messages)
            tell(
                "message, from chat to acknowledged answer",
                options.messages,
                before,
                await look(cluster, redis),
            )
        before = await look(cluster, redis)
        await stream(cluster, redis, options.tokens, options.rate)
        tell(f"token, at {options.rate:.0f} a second", options.tokens, before, await look(cluster, redis))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sockets", type=int, default=4_000)
    parser.add_argument("--messages", type=int, default=6_000)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=2_000.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), unlimited=True) as cluster:
        uvloop.run(measure(cluster, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
