"""What a second and a third router cost: CPU per message with 1, 2 and 3 of them; and what idle tenants cost.

    python -m benchmarks.routers [--messages N] [--rounds N] [--idle-tenants N] …

The numbers of routers take turns over several rounds, so that what else happens on the machine meets all of
them; the median of each is told. At the end, ``--idle-tenants`` callback lists are known and nothing happens;
then a callback is pushed to the last of them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import redis
import uvloop

from benchmarks.main_path import Clients, Phase, run_phase
from tests.support.accounting import callback
from tests.support.processes import Cluster
from tests.support.talk import open_socket, receive, receive_logged

_SETTLE_S = 3.0  # a router's lease and then some: who serves what is known to all


async def _measure(cluster: Cluster, arguments: argparse.Namespace) -> tuple[Phase, Phase]:
    sessions = [(f"tenant-{n % arguments.tenants}", f"session-{n}") for n in range(arguments.connections)]
    clients = Clients(sessions)
    await clients.open([pod.port for pod in cluster.pods])
    await asyncio.sleep(_SETTLE_S)
    await run_phase(cluster, clients, arguments.messages // 10, arguments.rate, "warm")
    paced = await run_phase(cluster, clients, arguments.messages, arguments.rate, "paced")
    burst = await run_phase(cluster, clients, arguments.messages * 2, 0, "burst")
    for socket in clients.sockets:
        socket.drop()
        await socket.lost
    return paced, burst


def _print(routers: int, name: str, phases: list[Phase]) -> None:
    def middle(what: str) -> float:
        return float(statistics.median(getattr(phase, what) for phase in phases))

    missing = sum(phase.messages - phase.delivered for phase in phases)
    print(
        f"{routers} router{'s' if routers > 1 else ' '}  {name}: routers {middle('router_us'):.0f} "
        f"pods {middle('pods_us'):.0f} Valkey {middle('valkey_us'):.0f} µs a message, "
        f"p50 {middle('p50_ms'):.2f} ms, p99 {middle('p99_ms'):.2f} ms, undelivered {missing}",
        flush=True,
    )


def measure_idle(folder: Path, tenants: int, over_s: float) -> None:
    """The CPU of a router that serves many silent tenants, and how soon a callback to the last one comes."""
    with Cluster(folder, pods=1) as cluster, redis.Redis(port=cluster.redis_port) as client:
        names = [f"orchestrator:tenant-{n}:callbacks" for n in range(tenants)]
        with client.pipeline(transaction=False) as pipeline:
            for n, name in enumerate(names):
                pipeline.lpush(name, callback(f"tenant-{n}", "session", f"t{n}"))
            pipeline.execute()
        while client.zcard("ao:callback-lists") < tenants or any(
            client.exists(*names[start : start + 1000]) for start in range(0, tenants, 1000)
        ):
            time.sleep(0.1)
        router = cluster.routers[0]
        time.sleep(1.0)
        before, began = router.cpu_s(), time.monotonic()
        time.sleep(over_s)
        used = (router.cpu_s() - before) / (time.monotonic() - began)
        last = tenants - 1
        delays = []
        with open_socket(cluster.pods[0], "session", tenant_id=f"tenant-{last}") as socket:
            receive_logged(socket, 1)
            for n in range(20):
                pushed = time.monotonic()
                client.lpush(names[last], callback(f"tenant-{last}", "session", f"again-{n}"))
                while receive(socket)["type"] != "agent_response":
                    pass
                delays.append((time.monotonic() - pushed) * 1e3)
        print(
            f"{tenants} idle tenants: router {used * 100:.2f} % of a core, "
            f"{router.rss_kib() / 1024:.0f} MiB; "
            f"a callback to the last one came in {statistics.median(delays):.2f} ms (worst {max(delays):.2f})"
        )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1_000.0, help="messages a second of the paced phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle-tenants", type=int, default=10_000)
    parser.add_argument("--idle-s", type=float, default=60.0)
    arguments = parser.parse_args()
    measured: dict[int, list[tuple[Phase, Phase]]] = {1: [], 2: [], 3: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for routers, phases in measured.items():
                own = Path(folder, f"{number}-{routers}")  # Valkey would find the last one's data
                own.mkdir()
                with Cluster(own, routers=routers) as cluster:
                    phases.append(uvloop.run(_measure(cluster, arguments)))
        for routers, phases in measured.items():
            _print(routers, "paced", [paced for paced, _ in phases])
            _print(routers, "burst", [burst for _, burst in phases])
        if arguments.idle_tenants:
            own = Path(folder, "idle")
            own.mkdir()
            measure_idle(own, arguments.idle_tenants, arguments.idle_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
