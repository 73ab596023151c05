"""What a noisy tenant does to the others: their latency and the processes' memory, without and with it.

    python -m benchmarks.overload [--queued N] [--tenants N] …

Twenty quiet tenants get callbacks at a steady pace all the time. Beside them: nothing; then one tenant with a
million callbacks queued, some of whose sessions have sockets; then ten thousand tenants with one callback
each, at once; then a session with a hundred sockets at full speed. Told is the quiet tenants' p50 and p99 in
each part, p99 as a multiple of the first part's, and how much router and pods have grown at most.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
import uvloop

from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster

_QUIET = 20
_A_SECOND = 100
_PIPELINE = 500


@dataclass
class Quiet:
    """The quiet tenants' sockets, and what they measured in the present part."""

    cluster: Cluster
    pushed: dict[bytes, float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    grown_kib: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)

    def on_text(self, text: bytes) -> None:
        """Note how long a callback took; its task id is found without decoding the rest."""
        if b'"agent_response"' in text[:200]:
            task_id = text.split(b'"task_id":"', 1)[1].split(b'"', 1)[0]
            pushed_at = self.pushed.pop(task_id, None)
            if pushed_at is not None:  # else it is of a time between two parts
                self.delays.append(time.monotonic() - pushed_at)

    async def push_forever(self) -> None:
        """Push to one quiet tenant after the other."""
        loop = asyncio.get_running_loop()
        with redis.Redis(port=self.cluster.redis_port) as client:
            began, number = time.monotonic(), 0
            while True:
                tenant, task_id = f"quiet-{number % _QUIET}", f"q.{number}"
                self.pushed[task_id.encode()] = time.monotonic()
                text = callback(tenant, "s", task_id)
                await loop.run_in_executor(None, client.lpush, f"orchestrator:{tenant}:callbacks", text)
                number += 1
                await asyncio.sleep(max(0.0, began + number / _A_SECOND - time.monotonic()))

    async def watch_memory(self) -> None:
        """Note the most that a process has grown."""
        processes = [*self.cluster.pods, *self.cluster.routers]
        self._sizes = {process.pid: process.rss_kib() for process in processes}
        while True:
            await asyncio.sleep(0.25)
            for process in processes:
                self.grown_kib = max(self.grown_kib, process.rss_kib() - self._sizes[process.pid])

    def part(self, name: str, unloaded_ms: float | None) -> float:
        """Tell a part's figures and begin the next; returns its p99 in ms."""
        cuts = statistics.quantiles(self.delays, n=100)
        p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
        waiting = [time.monotonic() - at for at in self.pushed.values()]
        times = "" if unloaded_ms is None else f", {p99 / unloaded_ms:.1f} times the unloaded"
        print(
            f"{name}: quiet tenants p50 {p50:.2f} ms, p99 {p99:.2f} ms{times} "
            f"({len(self.delays)} callbacks, longest still waiting {max(waiting, default=0.0):.2f} s); "
            f"a process grew by {self.grown_kib / 1024:.1f} MiB at most",
            flush=True,
        )
        self.delays = []
        return p99


def _queue(port: int, texts: Iterator[tuple[str, str]]) -> None:
    with redis.Redis(port=port) as client:
        pipeline = client.pipeline(transaction=False)
        for number, (tenant, text) in enumerate(texts, 1):
            pipeline.lpush(f"orchestrator:{tenant}:callbacks", text)
            if number % _PIPELINE == 0:
                pipeline.execute()
        pipeline.execute()


def _path(tenant: str, session: str) -> str:
    return f"/ws/{session}?tenant_id={tenant}&tenant_tier=free"


async def _open(ports: list[int], paths: list[str], on_text: Callable[[bytes], None]) -> list[LeanClient]:
    opened = []
    for number, path in enumerate(paths):
        socket = await connect(ports[number % len(ports)], path, on_text)
        assert socket is not None, "a socket was refused"
        opened.append(socket)
    return opened


# The noise comes from a process of its own: it must not share an interpreter with what measures.


def _busy(redis_port: int, ports: list[int], queued: int, told: Connection) -> None:
    """One tenant with very many callbacks queued; 10 of its 200 sessions have sockets."""

    async def work() -> None:
        await _open(ports, [_path("busy", f"s{n}") for n in range(10)], lambda _text: None)
        texts = (("busy", callback("busy", f"s{n % 200}", f"b.{n}", 50)) for n in range(queued))
        await asyncio.to_thread(_queue, redis_port, texts)
        told.send("queued")
        with redis.Redis(port=redis_port) as client:
            while await asyncio.to_thread(client.llen, "orchestrator:busy:callbacks"):
                await asyncio.sleep(0.1)
        told.send("moved")

    uvloop.run(work())


def _many(redis_port: int, _ports: list[int], tenants: int, told: Connection) -> None:
    """Very many tenants with one callback each, all at once."""
    texts = ((f"one-{n}", callback(f"one-{n}", "s", f"o.{n}")) for n in range(tenants))
    ready = list(texts)
    told.send("queued")
    _queue(redis_port, iter(ready))
    names = [f"orchestrator:{tenant}:callbacks" for tenant, _ in ready]
    with redis.Redis(port=redis_port) as client:
        while any(client.exists(*names[start : start + 1000]) for start in range(0, tenants, 1000)):
            time.sleep(0.02)
    told.send("moved")


def _crowd(redis_port: int, ports: list[int], callbacks: int, told: Connection) -> None:
    """A session with a hundred sockets, which get everything that its agent pushes at full speed."""
    heard = 0

    def count(text: bytes) -> None:
        nonlocal heard
        heard += b'"agent_response"' in text[:200]

    async def work() -> None:
        await _open(ports, [_path("crowd", "s")] * 100, count)
        texts = (("crowd", callback("crowd", "s", f"c.{n}")) for n in range(callbacks))
        told.send("queued")
        await asyncio.to_thread(_queue, redis_port, texts)
        while heard < 100 * callbacks:
            await asyncio.sleep(0.02)
        told.send("moved")

    uvloop.run(work())


async def _beside(
    quiet: Quiet, noise: Callable[[int, list[int], int, Connection], None], count: int, *, held: bool = False
) -> float:
    """Make a noise; returns how long it lasted, in seconds.

    Args:
        held: the routers are stopped until all of it is queued.
    """
    cluster, process = quiet.cluster, multiprocessing.get_context("spawn")
    ours, theirs = process.Pipe()
    ports = [pod.port for pod in cluster.pods]
    child = process.Process(target=noise, args=(cluster.redis_port, ports, count, theirs))
    if held:
        for router in cluster.routers:
            router.signal(signal.SIGSTOP)
    child.start()
    await asyncio.to_thread(ours.recv)
    if held:
        quiet.pushed.clear()  # what waited for the routers is no measure of them
        for router in cluster.routers:
            router.signal(signal.SIGCONT)
    began = time.monotonic()
    quiet.delays = []
    await asyncio.to_thread(ours.recv)
    took = time.monotonic() - began
    child.kill()
    child.join()
    return took


async def _measure(cluster: Cluster, arguments: argparse.Namespace) -> None:
    quiet = Quiet(cluster)
    ports = [pod.port for pod in cluster.pods]
    sockets = await _open(ports, [_path(f"quiet-{n}", "s") for n in range(_QUIET)], quiet.on_text)
    tasks = [asyncio.create_task(quiet.push_forever())]
    await asyncio.sleep(2)
    quiet.delays = []
    tasks.append(asyncio.create_task(quiet.watch_memory()))
    await asyncio.sleep(arguments.part_s)
    alone = quiet.part("nothing beside", None)
    took = await _beside(quiet, _busy, arguments.queued, held=True)
    quiet.part(f"{arguments.queued} queued by one tenant ({arguments.queued / took:.0f} a second)", alone)
    took = await _beside(quiet, _many, arguments.tenants)
    quiet.part(f"{arguments.tenants} tenants with one callback each ({took:.1f} s)", alone)
    took = await _beside(quiet, _crowd, 5_000)
    quiet.part(f"a session with 100 sockets, 500000 frames ({took:.1f} s)", alone)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for socket in sockets:
        socket.drop()
        await socket.lost


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--part-s", type=float, default=20.0)
    parser.add_argument("--batch", help="TRANSFER_BATCH, to compare")
    parser.add_argument("--concurrency", help="TRANSFER_CONCURRENCY, to compare")
    arguments = parser.parse_args()
    wishes = {"TRANSFER_BATCH": arguments.batch, "TRANSFER_CONCURRENCY": arguments.concurrency}
    settings: Any = {name: wish for name, wish in wishes.items() if wish is not None}
    settings["CONNECTIONS_PER_SESSION"] = "0"
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **settings) as cluster:
        uvloop.run(_measure(cluster, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
