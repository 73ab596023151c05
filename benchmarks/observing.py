"""What metrics and logs cost on a message's full path: CPU per message, with them and without.

    python -m benchmarks.observing [--rounds 15] [--messages 3000] [--sockets 100]

Two clusters of two pods and a router stand side by side: one as it is shipped, scraped every 15 s, and one of
which all that counts, measures and logs has been taken out (`benchmarks.unobserved`). Clients send chat
messages over sockets and acknowledge the answers of an agent, in turn on one cluster and the other, so that
both meet the same machine. The medians of the rounds are told, the median of their ratios, and what the
quietest quarter of the rounds cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Process, free_port
from tests.support.scrape import scrape

QUEUE = "nooble4:dev:agent_execution_service:actions:free"
_SCRAPE_EVERY_S = 15.0
_PATIENCE_S = 60.0
_CHAT = json.dumps({"type": "chat", "message": "What is the weather like?", "agent_id": "sales"})


class Client:
    """Sends a message when its last one was answered, as long as there are some left."""

    def __init__(self, left: list[int], done: asyncio.Event) -> None:
        self._left = left
        self._done = done
        self.answered = 0
        self.socket: LeanClient | None = None

    def send(self) -> None:
        """The next message, if there is one."""
        if self._left[0] > 0:
            self._left[0] -= 1
            assert self.socket is not None
            self.socket.send_text(_CHAT)

    def on_text(self, text: bytes) -> None:
        """Acknowledge an answer, and go on."""
        if b'"agent_response"' in text[:100]:
            assert self.socket is not None
            seq = text.rpartition(b'"seq":')[2].rstrip(b"}").decode()
            self.socket.send_text('{"type":"ack","seq":' + seq + "}")
            self.answered += 1
            self._left[1] -= 1
            if self._left[1] == 0:
                self._done.set()
            self.send()


async def _answer(redis: Redis) -> None:
    """An agent that answers at once, many in one go."""
    while True:
        first: Any = await redis.brpop([QUEUE], 0)
        more: Any = await redis.rpop(QUEUE, 200)
        pipeline = redis.pipeline(transaction=False)
        for raw in (first[1], *(more or ())):
            action = json.loads(raw)
            base = {name: action[name] for name in ("tenant_id", "session_id", "task_id", "tenant_tier")}
            result = {"response": "It rains. " * 20, "sources": [], "agent_info": {"model_used": "none"}}
            said = {**base, "action_id": action["task_id"], "status": "completed", "result": result}
            pipeline.lpush(action["callback_queue"], json.dumps(said))
        await pipeline.execute()


async def _scrape(addresses: list[str]) -> None:
    while True:
        for address in addresses:
            await asyncio.to_thread(scrape, address)
        await asyncio.sleep(_SCRAPE_EVERY_S)


class Side:
    """One of the two clusters, with its clients.

    Attributes:
        cpu_us: of each round, per message: pods and router.
        redis_us: likewise, of Valkey.
    """

    def __init__(self, cluster: Cluster, *, addresses: list[str]) -> None:
        self._cluster = cluster
        self._addresses = addresses
        self._left = [0, 0]
        self._done = asyncio.Event()
        self._clients: list[Client] = []
        self.cpu_us: list[float] = []
        self.redis_us: list[float] = []

    @asynccontextmanager
    async def open(self, sockets: int) -> AsyncIterator[None]:
        """Connect the clients and the agent."""
        pods = self._cluster.pods
        for number in range(sockets):
            client = Client(self._left, self._done)
            path = f"/ws/s-{number}?tenant_id=tenant-{number % 20}&tenant_tier=free&agent_id=sales"
            client.socket = await connect(pods[number % len(pods)].port, path, client.on_text)
            assert client.socket is not None, "a socket was refused"
            self._clients.append(client)
        async with Redis(port=self._cluster.redis_port) as redis:
            tasks = [asyncio.create_task(_answer(redis)), asyncio.create_task(_scrape(self._addresses))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def round(self, messages: int) -> None:
        """Send so many, and wait for the answers."""
        cluster = self._cluster
        self._left[:] = [messages, messages]
        self._done.clear()
        before = _cpu_s(cluster.pods) + _cpu_s(cluster.routers), _cpu_s([cluster.valkey])
        for client in self._clients:
            client.send()
        async with asyncio.timeout(_PATIENCE_S):
            await self._done.wait()
        after = _cpu_s(cluster.pods) + _cpu_s(cluster.routers), _cpu_s([cluster.valkey])
        self.cpu_us.append((after[0] - before[0]) / messages * 1e6)
        self.redis_us.append((after[1] - before[1]) / messages * 1e6)


def _cpu_s(processes: Sequence[Process]) -> float:
    return sum(process.cpu_s() for process in processes)


def _least(side: Side) -> float:
    """Of the rounds in which hardly anything else ran: the mean of the lowest quarter."""
    lowest = sorted(side.cpu_us)[: max(1, len(side.cpu_us) // 4)]
    return statistics.mean(lowest)


def _blindfolded(process: Process) -> None:
    process.command[process.command.index("gateway")] = "benchmarks.unobserved"


async def compare(observed: Side, unobserved: Side, rounds: int, messages: int, sockets: int) -> None:
    """Run all rounds; the first of each side only warms up."""
    async with observed.open(sockets), unobserved.open(sockets):
        for number in range(rounds + 1):
            for side in (observed, unobserved) if number % 2 else (unobserved, observed):
                await side.round(messages)
    for side in (observed, unobserved):
        del side.cpu_us[0], side.redis_us[0]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=3_000)
    parser.add_argument("--sockets", type=int, default=100)
    options = parser.parse_args()
    sides, ports = [], [free_port(), free_port()]
    with ExitStack() as stack:
        for blind, port in zip((False, True), ports, strict=True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = Cluster(folder, unlimited=True, ROUTER_PORT=str(port))
            if blind:
                for process in (*cluster.pods, *cluster.routers):
                    _blindfolded(process)
            stack.enter_context(cluster)
            urls = [pod.url for pod in cluster.pods] + [f"http://127.0.0.1:{port}"]
            sides.append(Side(cluster, addresses=[] if blind else urls))
        observed, unobserved = sides
        uvloop.run(compare(observed, unobserved, options.rounds, options.messages, options.sockets))
    ratios = [one / other for one, other in zip(observed.cpu_us, unobserved.cpu_us, strict=True)]
    print(
        f"observed_us={statistics.median(observed.cpu_us):.1f} "
        f"unobserved_us={statistics.median(unobserved.cpu_us):.1f} "
        f"ratio={statistics.median(ratios):.3f} ratios={min(ratios):.3f}..{max(ratios):.3f} "
        f"least_us={_least(observed):.1f}/{_least(unobserved):.1f} "
        f"valkey_us={statistics.median(observed.redis_us):.1f}/{statistics.median(unobserved.redis_us):.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
