"""What the main path costs: CPU per message, memory per idle connection, latency.

    python -m benchmarks.main_path [--connections N] [--messages N] …     (`make bench`)

One Valkey, two pods, one router, all sockets in this process. First the sockets are opened and left idle
(memory); then callbacks are pushed as fast as Redis takes them (CPU per message); then at a steady pace
(latency, and CPU per message without the help of batches). The same with `benchmarks.naive`, in the same run:
machines differ, so only the ratio of the two is worth quoting. CPU is the processes' own, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import redis
import uvloop

from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Process

_OPENING_AT_ONCE = 100
_PATIENCE_S = 30.0
_ANSWER_CHARACTERS = 210  # makes a callback of 520 bytes


@dataclass
class Phase:
    """One way of pushing, measured."""

    messages: int
    delivered: int
    seconds: float
    router_us: float
    pods_us: float
    valkey_us: float
    p50_ms: float
    p99_ms: float

    @property
    def cpu_us(self) -> float:
        """CPU µs per message of router and pods together."""
        return self.router_us + self.pods_us

    def __str__(self) -> str:
        return (
            f"{self.delivered}/{self.messages} in {self.seconds:.1f} s: "
            f"{self.cpu_us:.1f} µs a message (router {self.router_us:.1f}, pods {self.pods_us:.1f}; "
            f"Valkey {self.valkey_us:.1f}), p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"
        )


@dataclass
class Result:
    """All of one system's figures."""

    kib_per_connection: float
    burst: Phase
    paced: Phase


@dataclass
class Clients:
    """All sockets, and when each message came."""

    sessions: list[tuple[str, str]]
    came: dict[str, float] = field(default_factory=dict)
    sockets: list[LeanClient] = field(default_factory=list)
    acked: int = 0

    def on_text(self, text: bytes) -> None:
        """Note when a message came; its task_id is found without decoding the rest."""
        if b'"agent_response"' in text[:200]:
            at = text.index(b'"task_id":') + 10
            self.came[text[at:].lstrip(b' "').partition(b'"')[0].decode()] = time.monotonic()
        elif b"connection_ack" in text[:100]:
            self.acked += 1

    async def open(self, ports: list[int]) -> None:
        """Open every session's socket, dealt out among the pods."""
        gate = asyncio.Semaphore(_OPENING_AT_ONCE)

        async def one(number: int, tenant_id: str, session_id: str) -> None:
            async with gate:
                path = f"/ws/{session_id}?tenant_id={tenant_id}&tenant_tier=free"
                socket = await connect(ports[number % len(ports)], path, self.on_text)
                assert socket is not None, "a socket was refused"
                self.sockets.append(socket)

        await asyncio.gather(*[one(n, *session) for n, session in enumerate(self.sessions)])
        while self.acked < len(self.sessions):
            await asyncio.sleep(0.01)


def _push(redis_port: int, clients: Clients, count: int, rate: float, tag: str) -> dict[str, float]:
    """Push ``count`` callbacks to random sessions, ``rate`` a second (0: no limit); when each was pushed."""
    choose = random.Random(7)
    pushed: dict[str, float] = {}
    began = time.monotonic()
    with redis.Redis(port=redis_port) as client:
        size = 50 if rate == 0 else 1
        for start in range(0, count, size):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, min(start + size, count)):
                tenant_id, session_id = choose.choice(clients.sessions)
                task_id = f"{tag}.{number}"
                text = callback(tenant_id, session_id, task_id, _ANSWER_CHARACTERS)
                pipeline.lpush(f"orchestrator:{tenant_id}:callbacks", text)
                pushed[task_id] = time.monotonic()
            pipeline.execute()
            if rate:
                time.sleep(max(0.0, began + (start + size) / rate - time.monotonic()))
    return pushed


async def run_phase(cluster: Cluster, clients: Clients, count: int, rate: float, tag: str) -> Phase:
    """Push ``count`` callbacks, ``rate`` a second (0: at full speed), and measure."""
    groups: dict[str, Sequence[Process]] = {
        "router": cluster.routers,
        "pods": cluster.pods,
        "valkey": [cluster.valkey],
    }
    before = {name: sum(p.cpu_s() for p in processes) for name, processes in groups.items()}
    began = time.monotonic()
    pushed = await asyncio.to_thread(_push, cluster.redis_port, clients, count, rate, tag)
    deadline = time.monotonic() + _PATIENCE_S
    while not pushed.keys() <= clients.came.keys() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    took = time.monotonic() - began
    used = {name: sum(p.cpu_s() for p in processes) - before[name] for name, processes in groups.items()}
    delays = [clients.came[task] - at for task, at in pushed.items() if task in clients.came]
    cuts = statistics.quantiles(delays, n=100)
    micro = {name: seconds / count * 1e6 for name, seconds in used.items()}
    return Phase(
        count,
        len(delays),
        took,
        micro["router"],
        micro["pods"],
        micro["valkey"],
        cuts[49] * 1e3,
        cuts[98] * 1e3,
    )


async def measure(cluster: Cluster, arguments: argparse.Namespace) -> Result:
    """One system's figures."""
    sessions = [(f"tenant-{n % arguments.tenants}", f"session-{n}") for n in range(arguments.connections)]
    clients = Clients(sessions)
    empty = sum(pod.rss_kib() for pod in cluster.pods)
    await clients.open([pod.port for pod in cluster.pods])
    full = sum(pod.rss_kib() for pod in cluster.pods)
    burst = await run_phase(cluster, clients, arguments.messages, 0, "burst")
    paced = await run_phase(cluster, clients, arguments.messages // 2, arguments.rate, "paced")
    for socket in clients.sockets:
        socket.drop()
        await socket.lost
    return Result((full - empty) / arguments.connections, burst, paced)


class NaiveCluster(Cluster):
    """Valkey with the rival's processes."""

    def __init__(self, folder: Path, tenants: int) -> None:
        super().__init__(folder, pods=2, routers=1)
        command = [sys.executable, "-m", "benchmarks.naive"]
        more = ["--redis-port", str(self.redis_port), "--tenants", str(tenants)]
        self.routers = [Process([*command, "router", *more], {}, folder / "naive-router.log")]
        for pod in self.pods:
            Process.__init__(
                pod, [*command, "pod", "--port", str(pod.port), *more], {}, folder / "naive-pod.log"
            )

    def _routers_known(self) -> bool:
        return True


def _print(name: str, result: Result) -> None:
    print(f"{name}: {result.kib_per_connection:.1f} KiB a connection")
    print(f"  burst  {result.burst}")
    print(f"  paced  {result.paced}", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=1_000.0, help="messages a second of the paced phase")
    parser.add_argument("--no-rival", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/main_path.json"))
    arguments = parser.parse_args()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_rival:
            with NaiveCluster(Path(folder), arguments.tenants) as naive:
                results["naive"] = uvloop.run(measure(naive, arguments))
            _print("naive", results["naive"])
        with Cluster(Path(folder)) as cluster:
            results["ours"] = ours = uvloop.run(measure(cluster, arguments))
        _print("ours", ours)
    if "naive" in results:
        rival = results["naive"]
        print(
            f"ours / naive: memory {ours.kib_per_connection / rival.kib_per_connection:.2f}, "
            f"CPU burst {ours.burst.cpu_us / rival.burst.cpu_us:.2f}, "
            f"CPU paced {ours.paced.cpu_us / rival.paced.cpu_us:.2f}"
        )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({name: asdict(result) for name, result in results.items()}, indent=2)
    )
    print(
        f"cpu_us_per_message={ours.burst.cpu_us:.1f} kib_per_connection={ours.kib_per_connection:.1f} "
        f"p50_ms={ours.paced.p50_ms:.2f} p99_ms={ours.paced.p99_ms:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
