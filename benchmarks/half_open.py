"""What connections that never become sockets do to those that do.

    python -m benchmarks.half_open [--sockets N] [--attack-s N] …

One pod that wants tokens. A third of the attacker's connections say nothing, a third send a request head
one byte at a time, a third ask for a socket without a token and then keep silent; whatever the pod closes is
opened again, in a first run within a second, in another at once. Meanwhile a client with a token connects
again and again, each time over a new connection, and open sockets get callbacks. Told is how long both take
before, during and after, how long the attacker's connections last, and what the pod holds.

Machines differ, and other work on this one shows: latencies are worth quoting only as ratios within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import redis
import uvloop

from backplane.settings import Settings
from gateway.tokens import issue_token
from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster

SOCKETS = 10_000
SECRET = "a secret of the benchmark's own, and long enough"
TIMEOUT_S = 5.0
"""In which a request has to come (HANDSHAKE_TIMEOUT_S)."""
KINDS = ("silent", "trickle", "tokenless")

_OPEN = 50
_CALLBACK_EVERY_S = 0.05
_VALID_EVERY_S = 0.02
_ADDRESSES = 16
_FIRST_A_TURN = 200
_BYTE_EVERY_S = 1.0
_TURNS = 20
_OTHER_FILES = 1_000

_HEAD = b"GET /ws/slow HTTP/1.1\r\nHost: slow\r\nX-Slow: " + b"x" * 10_000
_UPGRADE = (
    b"GET /ws/s?tenant_id=acme&tenant_tier=free HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_BIND_ADDRESS_NO_PORT = 24  # Linux: the port is chosen with the connect; Python names it from 3.12 on
_spawn = multiprocessing.get_context("spawn")


def allow_files(wanted: int) -> None:
    """Let this process and its children open so many files.

    Raises:
        OSError: the machine does not allow that (``ulimit -Hn``).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(f"{wanted} open files are needed, {hard} are allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# The attacker, in a process of its own.


@dataclass
class Kind:
    """What became of one kind of connections.

    Attributes:
        lasted: seconds from the connect to the end, of those that the pod has ended.
        oldest_s: age of the oldest that is still open.
    """

    lasted: list[float] = field(default_factory=list)
    oldest_s: float = 0.0

    @property
    def longest_s(self) -> float:
        """The longest that any has lasted, whether it has ended or not."""
        return max([*self.lasted, self.oldest_s])

    @property
    def median_s(self) -> float:
        """How long half of those that the pod has ended have lasted."""
        return statistics.median(self.lasted or [0.0])


@dataclass
class Swarm:
    """What an attack came to.

    Attributes:
        opened: connections in all.
        failed: that could not be opened.
        seconds: from the first to the end.
    """

    kinds: dict[str, Kind]
    opened: int = 0
    failed: int = 0
    seconds: float = 0.0


class _Idler(asyncio.Protocol):
    """A connection that never comes to anything."""

    def __init__(self, attacker: _Attacker, number: int) -> None:
        self._attacker = attacker
        self.number = number
        self.kind = KINDS[number % len(KINDS)]
        self.at = 0
        self.made = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = time.monotonic()
        self.transport = cast("asyncio.Transport", transport)
        self._attacker.open[self.number] = self
        if self.kind == "tokenless":
            self.transport.write(_UPGRADE)

    def trickle(self) -> None:
        """One byte more."""
        if self.transport is not None:
            self.transport.write(_HEAD[self.at : self.at + 1])
            self.at += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._attacker.lost(self)


class _Attacker:
    """All of them.

    Args:
        pause_s: at most so long after one was closed it is opened again; 0: at once.
    """

    def __init__(self, port: int, pause_s: float) -> None:
        self._port = port
        self._pause_s = pause_s
        self._addresses = [f"127.0.0.{2 + n}" for n in range(_ADDRESSES)]
        self._opening: set[asyncio.Task[None]] = set()
        self._over = False
        self.open: dict[int, _Idler] = {}
        self.swarm = Swarm({kind: Kind() for kind in KINDS})

    def begin(self, number: int) -> None:
        """Open the n-th."""
        task = asyncio.create_task(self._begin(number))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _begin(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        if self._pause_s:
            await asyncio.sleep(random.uniform(0, self._pause_s))
        while not self._over:
            source = socket.socket()
            source.setblocking(False)
            try:
                source.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                source.bind((self._addresses[number % _ADDRESSES], 0))
                await loop.sock_connect(source, ("127.0.0.1", self._port))
                await loop.create_connection(lambda: _Idler(self, number), sock=source)
            except OSError:
                source.close()
                self.swarm.failed += 1
                await asyncio.sleep(0.1)
            except BaseException:
                source.close()
                raise
            else:
                self.swarm.opened += 1
                return

    def lost(self, idler: _Idler) -> None:
        """The pod has closed one; open it again."""
        self.open.pop(idler.number, None)
        if not self._over:
            self.swarm.kinds[idler.kind].lasted.append(time.monotonic() - idler.made)
            self.begin(idler.number)

    async def run(self, sockets: int, seconds: float, told: Connection) -> Swarm:
        """Attack."""
        began = time.monotonic()
        for number in range(sockets):
            self.begin(number)
            if number % _FIRST_A_TURN == 0:
                await asyncio.sleep(0.01)
        told.send("all begun")
        trickling = asyncio.create_task(self._trickle())
        await asyncio.sleep(began + seconds - time.monotonic())
        self._over = True
        trickling.cancel()
        now = self.swarm.seconds = time.monotonic()
        self.swarm.seconds -= began
        for idler in self.open.values():
            kind = self.swarm.kinds[idler.kind]
            kind.oldest_s = max(kind.oldest_s, now - idler.made)
        for task in self._opening:
            task.cancel()
        for idler in list(self.open.values()):
            if idler.transport is not None:
                idler.transport.abort()
        await asyncio.sleep(0.5)
        return self.swarm

    async def _trickle(self) -> None:
        turn = 0
        while True:
            for idler in list(self.open.values()):
                if idler.kind == "trickle" and idler.number // len(KINDS) % _TURNS == turn % _TURNS:
                    idler.trickle()
            turn += 1
            await asyncio.sleep(_BYTE_EVERY_S / _TURNS)


def _attack(port: int, sockets: int, seconds: float, pause_s: float, told: Connection) -> None:
    async def work() -> Swarm:
        return await _Attacker(port, pause_s).run(sockets, seconds, told)

    told.send(uvloop.run(work()))


@contextmanager
def _attacker(port: int, sockets: int, seconds: float, pause_s: float) -> Iterator[Connection]:
    ours, theirs = _spawn.Pipe()
    child = _spawn.Process(target=partial(_attack, port, sockets, seconds, pause_s, theirs))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()


# What is measured.


@dataclass
class Part:
    """Those with tokens in one part of the run.

    Attributes:
        connects: from a new connection to its ``connection_ack``.
        refused: those that did not get there.
        callbacks: that came to open sockets; and how many were pushed.
        cpu: of the pod, as a part of one core.
        files: that the pod had open at most.
    """

    connects: int
    refused: int
    connect_p50_ms: float
    connect_p99_ms: float
    connect_worst_ms: float
    pushed: int
    callbacks: int
    callback_p50_ms: float
    callback_p99_ms: float
    cpu: float
    rss_kib: int
    files: int


class Valid:
    """Clients with tokens: one that connects again and again, and fifty that stay."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pod = cluster.pods[0]
        settings = Settings(jwt_secret=SECRET)
        self._token = issue_token(settings, time.time(), tenant_id="acme", tier="enterprise")
        self._sockets: list[LeanClient] = []
        self._waiting: dict[str, float] = {}
        self._connects: list[float] = []
        self._callbacks: list[float] = []
        self._refused = self._pushed = 0
        self._number = self._files = 0

    def _path(self, session_id: str) -> str:
        return f"/ws/{session_id}?token={self._token}"

    @asynccontextmanager
    async def staying(self) -> AsyncIterator[None]:
        """Those that stay are open meanwhile."""
        try:
            for number in range(_OPEN):
                client = await connect(self._pod.port, self._path(f"stays-{number}"), self._on_text)
                assert client is not None, "a socket was refused"
                self._sockets.append(client)
            yield
            assert not any(client.lost.done() for client in self._sockets), "an open socket was lost"
        finally:
            for client in self._sockets:
                client.drop()
                await client.lost

    def _on_text(self, text: bytes) -> None:
        if b'"agent_response"' in text[:200]:
            pushed_at = self._waiting.pop(json.loads(text)["task_id"], None)
            if pushed_at is not None:
                self._callbacks.append(time.monotonic() - pushed_at)

    async def part(self, seconds: float) -> Part:
        """Measure for so long."""
        self._connects, self._callbacks = [], []
        self._refused = self._pushed = self._files = 0
        began, cpu = time.monotonic(), self._pod.cpu_s()
        over = asyncio.Event()
        work = (self._come_and_go(over), self._push(over), self._watch(over))
        tasks = [asyncio.create_task(one) for one in work]
        await asyncio.sleep(seconds)
        used = (self._pod.cpu_s() - cpu) / (time.monotonic() - began)
        over.set()
        await asyncio.gather(*tasks)  # who is about to connect is measured to the end
        deadline = time.monotonic() + 2.0
        while self._waiting and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        connects, callbacks = (
            statistics.quantiles(times, n=100, method="inclusive")
            for times in (self._connects, self._callbacks)
        )
        return Part(
            len(self._connects),
            self._refused,
            connects[49] * 1e3,
            connects[98] * 1e3,
            max(self._connects) * 1e3,
            self._pushed,
            len(self._callbacks),
            callbacks[49] * 1e3,
            callbacks[98] * 1e3,
            used,
            self._pod.rss_kib(),
            self._files,
        )

    async def _come_and_go(self, over: asyncio.Event) -> None:
        acked = asyncio.Event()
        while not over.is_set():
            acked.clear()
            began = time.monotonic()
            client = await connect(self._pod.port, self._path("comes"), lambda _text: acked.set())
            if client is None:
                self._refused += 1
                continue
            try:
                await acked.wait()
                self._connects.append(time.monotonic() - began)
            finally:
                client.drop()
            await client.lost
            await asyncio.sleep(_VALID_EVERY_S)

    async def _watch(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self._files = max(self._files, len(os.listdir(f"/proc/{self._pod.pid}/fd")))
            await asyncio.sleep(0.1)

    async def _push(self, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        with redis.Redis(port=self._cluster.redis_port) as client:
            while not over.is_set():
                self._number += 1
                task_id = f"t.{self._number}"
                text = callback("acme", f"stays-{self._number % _OPEN}", task_id)
                self._waiting[task_id] = time.monotonic()
                self._pushed += 1
                await loop.run_in_executor(None, client.lpush, "orchestrator:acme:callbacks", text)
                await asyncio.sleep(_CALLBACK_EVERY_S)


@dataclass
class Result:
    """All figures."""

    before: Part
    during: Part
    after: Part
    swarm: Swarm

    def ratio(self, name: str) -> float:
        """A latency during the attack, as a multiple of that without it (the mean of before and after)."""
        calm = (getattr(self.before, name) + getattr(self.after, name)) / 2
        return float(getattr(self.during, name) / calm)


class OnePod(Cluster):
    """A pod that wants tokens, a router and Valkey."""

    def __init__(self, folder: Path, **settings: str) -> None:
        everything: Any = {"AUTH": "jwt", "JWT_SECRET": SECRET, "HANDSHAKE_TIMEOUT_S": str(TIMEOUT_S)}
        super().__init__(folder, pods=1, **(everything | settings))

    def __enter__(self) -> OnePod:
        super().__enter__()
        return self


async def measure(
    cluster: OnePod, sockets: int, attack_s: float, calm_s: float, pause_s: float = 0.0
) -> Result:
    """Measure before, during and after an attack."""
    valid = Valid(cluster)
    async with valid.staying():
        await valid.part(1.0)  # the first connections find everything cold
        before = await valid.part(calm_s)
        with _attacker(cluster.pods[0].port, sockets, attack_s, pause_s) as attacker:
            await asyncio.to_thread(attacker.recv)
            during = await valid.part(attack_s - 2.0)
            swarm: Swarm = await asyncio.to_thread(attacker.recv)
        await asyncio.sleep(1.0)
        after = await valid.part(calm_s)
    return Result(before, during, after, swarm)


def _tell(name: str, result: Result) -> None:
    swarm = result.swarm
    print(
        f"{name}: {swarm.opened} connections in {swarm.seconds:.1f} s ({swarm.opened / swarm.seconds:.0f} a "
        f"second), {swarm.failed} failed"
    )
    for kind, these in swarm.kinds.items():
        print(
            f"  {kind}: {len(these.lasted)} closed by the pod after {these.median_s:.2f} s (median), "
            f"none lasted longer than {these.longest_s:.2f} s"
        )
    for words, part in (("before", result.before), ("during", result.during), ("after", result.after)):
        print(
            f"  {words}: {part.connects} connects p50 {part.connect_p50_ms:.1f} ms, "
            f"p99 {part.connect_p99_ms:.1f} ms, worst {part.connect_worst_ms:.1f} ms, "
            f"refused {part.refused}; {part.callbacks} of {part.pushed} callbacks "
            f"p50 {part.callback_p50_ms:.1f} ms, p99 {part.callback_p99_ms:.1f} ms; "
            f"pod {part.cpu:.0%} of a core, {part.rss_kib / 1024:.1f} MiB, "
            f"{part.files} files"
        )
    names = ("connect_p50_ms", "connect_p99_ms", "callback_p50_ms", "callback_p99_ms")
    ratios = ", ".join(f"{name} {result.ratio(name):.1f}" for name in names)
    print(f"  during / without: {ratios}", flush=True)


def _plain(figures: Any) -> dict[str, Any]:
    if isinstance(figures, Kind):
        return {"closed": len(figures.lasted), "median_s": figures.median_s, "longest_s": figures.longest_s}
    return dict(vars(figures))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=SOCKETS)
    parser.add_argument("--attack-s", type=float, default=12.0)
    parser.add_argument("--calm-s", type=float, default=5.0, help="before and after it, each")
    parser.add_argument("--half-open-max", help="HALF_OPEN_MAX, to compare")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/half_open.json"))
    arguments = parser.parse_args()
    allow_files(arguments.sockets + _OTHER_FILES)
    wishes = {} if arguments.half_open_max is None else {"HALF_OPEN_MAX": arguments.half_open_max}
    results = {}
    for name, pause_s in (("within_a_second", 1.0), ("at_once", 0.0)):
        with tempfile.TemporaryDirectory() as folder, OnePod(Path(folder), **wishes) as cluster:
            results[name] = result = uvloop.run(
                measure(cluster, arguments.sockets, arguments.attack_s, arguments.calm_s, pause_s)
            )
        _tell(f"{arguments.sockets} connections, opened again {name.replace('_', ' ')}", result)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, default=_plain, indent=2))
    gentle, harsh = results["within_a_second"], results["at_once"]
    idle = [run.swarm.kinds[kind].longest_s for run in (gentle, harsh) for kind in ("silent", "trickle")]
    print(
        f"connect_p99_ms={gentle.during.connect_p99_ms:.0f} "
        f"connect_worst_ms={gentle.during.connect_worst_ms:.0f} "
        f"at_once_p99_ms={harsh.during.connect_p99_ms:.0f} "
        f"at_once_worst_ms={harsh.during.connect_worst_ms:.0f} "
        f"idle_longest_s={max(idle):.2f} "
        f"pod_grew_mib={(gentle.after.rss_kib - gentle.before.rss_kib) / 1024:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
