"""Counts a cluster's time series before and after thousands of tenants have used it.

    python -m tests.support.many_tenants [--tenants 5000]

Each tenant sends a message over a socket of its own, to an agent of its own, and gets the answer. Prints how
many series each process tells, and how many tenants and agents they name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, free_port, wait_for
from tests.support.scrape import Scrape, scrape

QUEUE = "nooble4:dev:agent_execution_service:actions:free"
_AT_ONCE = 50
_PATIENCE_S = 30.0


@dataclass
class Told:
    """What one process tells.

    Attributes:
        series: how many.
        tenants: values of `tenant_id`.
        agents: values of `agent_id`.
    """

    series: int
    tenants: int
    agents: int


class _Tenant:
    """One tenant's client: it says something once it is let in, and waits for the answer."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.socket: LeanClient | None = None

    def on_text(self, text: bytes) -> None:
        if b'"agent_response"' in text[:100]:
            self.answered.set()


async def _use(cluster: Cluster, number: int, gate: asyncio.Semaphore) -> None:
    async with gate:
        tenant, pod = _Tenant(), cluster.pods[number % len(cluster.pods)]
        query = f"tenant_id=tenant-{number}&tenant_tier=free&agent_id=agent-{number}"
        socket = await connect(pod.port, f"/ws/s-{number}?{query}", tenant.on_text)
        assert socket is not None, "a socket was refused"
        socket.send_text(json.dumps({"type": "chat", "message": "hello"}))
        async with asyncio.timeout(_PATIENCE_S):
            await tenant.answered.wait()
        socket.drop()


async def _answer(redis: Redis) -> None:
    while True:
        taken: Any = await redis.brpop([QUEUE], 0)
        action = json.loads(taken[1])
        base = {name: action[name] for name in ("tenant_id", "session_id", "task_id")}
        said = {**base, "action_id": action["task_id"], "status": "completed", "result": {"response": "hi"}}
        await redis.lpush(action["callback_queue"], json.dumps(said))


async def use(cluster: Cluster, tenants: range) -> None:
    """Have each of these tenants send a message and get the answer."""
    gate = asyncio.Semaphore(_AT_ONCE)
    async with Redis(port=cluster.redis_port) as redis:
        agent = asyncio.create_task(_answer(redis))
        try:
            await asyncio.gather(*[_use(cluster, number, gate) for number in tenants])
        finally:
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)


def look(addresses: dict[str, str]) -> dict[str, Told]:
    """What processes tell now, by their names, of which one is ``router``."""
    for url in addresses.values():
        scrape(url)  # a first scrape is itself a route that was not asked for before
    wait_for(lambda: _told_depths(addresses["router"]), "the router has looked at queues")
    return {name: _told(scrape(url)) for name, url in addresses.items()}


def _told_depths(url: str) -> bool:
    return any(name == "orchestrator_dead_letters_kept" for name, _ in scrape(url).samples)


def _told(seen: Scrape) -> Told:
    names = {name for name, _ in seen.samples}
    labels = {label: {one for name in names for one in seen.values(name, label)} for label in _LABELS}
    return Told(len(seen), *(len(labels[label]) for label in _LABELS))


_LABELS = ("tenant_id", "agent_id")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tenants", type=int, default=5_000)
    options = parser.parse_args()
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), pods=2, unlimited=True, ROUTER_PORT=str(port)) as cluster,
    ):
        addresses = {f"pod-{n}": pod.url for n, pod in enumerate(cluster.pods)}
        addresses["router"] = f"http://127.0.0.1:{port}"
        asyncio.run(use(cluster, range(100)))  # so that everything has been told once
        before = look(addresses)
        asyncio.run(use(cluster, range(100, 100 + options.tenants)))
        after = look(addresses)
    grown = 0
    for name, told in after.items():
        grown += told.series - before[name].series
        print(f"{name}: tenants={options.tenants} before={before[name]} after={told}")
    print(f"grown={grown}")
    return 0 if grown == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
