"""What a broadcast costs, and whether each socket gets it once.

    python -m benchmarks.broadcast [--sockets 5000] [--pods 3] [--times 20]

All sockets are of one tenant, each of a session of its own. Told is, for a broadcast to the tenant and one
to a topic that all have subscribed to: how many sockets got it once, how long until the first and the last
had it (the median of all times), and the pods' CPU per socket. The client shares the machine: what it takes
to read is in those times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvloop

from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster

SOCKETS = 5_000
PODS = 3
TIMES = 20
_TOPIC = "news"
_AT_ONCE = 200
_PATIENCE_S = 10.0


@dataclass
class Heard:
    """What the sockets got of the newest broadcast."""

    wanted: int
    mark: bytes = b""
    counts: Counter[int] = field(default_factory=Counter)
    first_s: float = 0.0
    last_s: float = 0.0
    all_there: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, mark: bytes) -> None:
        self.mark, self.counts = mark, Counter()
        self.all_there.clear()

    def hear(self, number: int, text: bytes) -> None:
        if not self.mark or self.mark not in text:
            return
        self.last_s = time.perf_counter()
        if not self.counts:
            self.first_s = self.last_s
        self.counts[number] += 1
        if len(self.counts) == self.wanted:
            self.all_there.set()


async def run(sockets: int, pods: int, times: int) -> bool:
    """Both kinds, on one cluster."""
    everything_right = True
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), pods=pods, CONNECTIONS_PER_TENANT="0,0,0,0") as cluster,
    ):
        heard = Heard(sockets)
        clients = await _open(cluster, sockets, heard)
        async with httpx.AsyncClient(timeout=30) as http:
            for name, to in (("tenant", {"tenant": True}), ("topic", {"topic": _TOPIC})):
                right = await _broadcast(cluster, http, heard, name, to, times)
                everything_right = everything_right and right
        for client in clients:
            client.drop()
    return everything_right


async def _open(cluster: Cluster, count: int, heard: Heard) -> list[LeanClient]:
    clients: list[LeanClient] = []
    subscribed = asyncio.Event()
    waiting = count

    def on_text(number: int, text: bytes) -> None:
        nonlocal waiting
        heard.hear(number, text)
        if b'"type":"subscribed"' in text:
            waiting -= 1
            if not waiting:
                subscribed.set()

    for start in range(0, count, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, count))
        opening = [
            connect(
                cluster.pods[number % len(cluster.pods)].port,
                f"/ws/s-{number}?tenant_id=acme&tenant_tier=free",
                lambda text, number=number: on_text(number, text),  # type: ignore[misc]
            )
            for number in some
        ]
        opened = await asyncio.gather(*opening)
        assert None not in opened, "a socket was refused"
        clients += [client for client in opened if client is not None]
    for client in clients:
        client.send(1, json.dumps({"type": "subscribe", "topics": [_TOPIC]}).encode())
    async with asyncio.timeout(60):
        await subscribed.wait()
    return clients


async def _broadcast(
    cluster: Cluster, http: httpx.AsyncClient, heard: Heard, name: str, to: object, times: int
) -> bool:
    url, headers = f"{cluster.pods[0].url}/api/broadcast", {"X-Tenant-ID": "acme"}
    firsts, lasts, once = [], [], 0
    cpu_s = sum(pod.cpu_s() for pod in cluster.pods)
    for number in range(times):
        mark = f"{name}-broadcast-{number}-of-these"
        heard.begin(mark.encode())
        began = time.perf_counter()
        answer = await http.post(url, json={"to": to, "payload": mark}, headers=headers)
        assert answer.status_code == 200, answer.text
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await heard.all_there.wait()
        except TimeoutError:
            print(f"{heard.wanted - len(heard.counts)} sockets did not get it")
        firsts.append(heard.first_s - began)
        lasts.append(heard.last_s - began)
        once += sum(count == 1 for count in heard.counts.values())
    cpu_s = sum(pod.cpu_s() for pod in cluster.pods) - cpu_s
    wanted = heard.wanted * times
    print(
        f"to={name} sockets={heard.wanted} pods={len(cluster.pods)} broadcasts={times} "
        f"once={once} of={wanted} first_ms={statistics.median(firsts) * 1e3:.1f} "
        f"last_ms={statistics.median(lasts) * 1e3:.1f} "
        f"worst_last_ms={max(lasts) * 1e3:.1f} cpu_us_per_socket={cpu_s / wanted * 1e6:.1f}",
        flush=True,
    )
    return once == wanted


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--sockets", type=int, default=SOCKETS)
    parser.add_argument("--pods", type=int, default=PODS)
    parser.add_argument("--times", type=int, default=TIMES)
    options = parser.parse_args()
    return 0 if uvloop.run(run(options.sockets, options.pods, options.times)) else 1


if __name__ == "__main__":
    sys.exit(main())
