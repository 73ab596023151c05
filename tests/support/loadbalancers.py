"""HAProxy and nginx with the files of deploy/loadbalancer/, and a rolling restart of the pods behind them.

python -m tests.support.loadbalancers [haproxy] [nginx] [--sockets N] …
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import redis
import uvloop

from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Pod, Process, free_port, get, wait_for

SHIPPED = Path(__file__).parents[2] / "deploy" / "loadbalancer"

_RETRY_S = 0.2
_OPENING_AT_ONCE = 50


class Balancer(Process):
    """A load balancer as a process in the foreground, without privileges; a context manager.

    What differs from the file that is shipped is in `_changes`: addresses, paths, and how many connections
    this machine allows. Each change has to find its place, or there is no file: what is shipped is tested.

    Args:
        folder: for its file, its log and whatever it writes.
        ports: of the pods, on this machine.
    """

    name = ""
    shipped = Path()

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.folder = folder
        self.port = free_port()
        self.file = folder / self.shipped.name
        self.file.write_text(self._render(self.shipped.read_text(), ports))
        super().__init__(self._command_line(), {}, folder / f"{self.name}.log")

    @classmethod
    def program(cls) -> str:
        """Where the program is; Debian keeps it where only root's PATH reaches.

        Raises:
            FileNotFoundError: it is not installed.
        """
        found = shutil.which(cls.name, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")
        if found is None:
            raise FileNotFoundError(f"{cls.name} is not installed; on Debian: apt-get install {cls.name}")
        return found

    @property
    def url(self) -> str:
        """Where clients come."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def written(self) -> str:
        """All that it wrote so far, into whatever file."""
        return "\n".join(file.read_text() for file in self.folder.glob("*.log"))

    def check(self) -> subprocess.CompletedProcess[str]:
        """What the program itself says of the file."""
        command = [*self._command_line(), self._check_flag]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)

    def takes(self, port: int) -> bool:
        """Whether it gives new sockets to the pod on ``port`` now."""
        raise NotImplementedError

    def __enter__(self) -> Balancer:
        self.start()
        wait_for(self._listens, f"{self.name} listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop(5.0)  # nginx's workers would outlive a killed master
        finally:
            self.kill()

    _check_flag = ""

    def _command_line(self) -> list[str]:
        raise NotImplementedError

    def _changes(self, ports: Sequence[int]) -> dict[str, str]:
        """Regular expressions of what is changed, and what it becomes."""
        raise NotImplementedError

    def _render(self, text: str, ports: Sequence[int]) -> str:
        for pattern, wanted in self._changes(ports).items():
            text, found = re.subn(pattern, wanted, text, flags=re.MULTILINE)
            if not found:
                raise ValueError(f"{self.shipped.name} has no {pattern}")
        return text

    def _listens(self) -> bool:
        if self.popen is not None and self.popen.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.output}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class HAProxy(Balancer):
    """HAProxy."""

    name = "haproxy"
    shipped = SHIPPED / "haproxy.cfg"
    _check_flag = "-c"

    def _command_line(self) -> list[str]:
        return [self.program(), "-db", "-f", str(self.file)]

    def _changes(self, ports: Sequence[int]) -> dict[str, str]:
        self._ports = list(ports)
        self._admin_port = free_port()
        pods = "".join(rf"\g<1>{n} 127.0.0.1:{port}\g<2>" for n, port in enumerate(ports, 1))
        return {
            r"^    (user|group|chroot) .*\n": "",
            r"bind :80$": f"bind 127.0.0.1:{self.port}",
            r"/run/haproxy/admin\.sock": f"127.0.0.1:{self._admin_port}",
            r"maxconn 40000": f"maxconn {min(40_000, allow_files() // 2 - 100)}",
            r"(?:^    server pod-\d+ .*\n)*(^    server pod-)\d+ 10\.0\.0\.\d+:8080(.*\n)": pods,
        }

    def takes(self, port: int) -> bool:
        wanted = f"pod-{self._ports.index(port) + 1}"
        return any(row["svname"] == wanted and row["status"] == "UP" for row in self._statistics())

    def _statistics(self) -> list[dict[str, str]]:
        with socket.create_connection(("127.0.0.1", self._admin_port), 2) as admin:
            admin.sendall(b"show stat\n")
            with admin.makefile() as answer:
                return list(csv.DictReader(answer.read().removeprefix("# ").splitlines()))


class Nginx(Balancer):
    """nginx, the open source version."""

    name = "nginx"
    shipped = SHIPPED / "nginx.conf"
    _check_flag = "-t"

    def _command_line(self) -> list[str]:
        outside = f"daemon off; pid {self.folder}/nginx.pid;"
        return [self.program(), "-p", str(self.folder), "-c", str(self.file), "-g", outside]

    def _changes(self, ports: Sequence[int]) -> dict[str, str]:
        pods = "".join(rf"\g<1>127.0.0.1:{port}\g<2>" for port in ports)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temp = "".join(f"\n    {kind}_temp_path {self.folder}/{kind};" for kind in kinds)
        # Without root there is no other user to become, and nginx warns of the line.
        unprivileged = {} if os.geteuid() == 0 else {r"^user .*\n": ""}
        return unprivileged | {
            r"listen 80 ": f"listen 127.0.0.1:{self.port} ",
            r"/var/log/nginx/": f"{self.folder}/",
            r"worker_rlimit_nofile \d+": f"worker_rlimit_nofile {min(45_000, allow_files())}",
            r"worker_connections \d+": f"worker_connections {min(40_000, allow_files())}",
            r"^http \{": f"http {{{temp}",
            r"(?:^ +server [\d.]+:8080.*\n)*(^ +server )10\.0\.0\.\d+:8080(.*\n)": pods,
        }

    def takes(self, port: int) -> bool:
        # It tells nobody what it thinks of its pods: it is asked for something, and its log for who answered.
        get(f"{self.url}/health")
        for line in reversed((self.folder / "access.log").read_text().splitlines()):
            seen = json.loads(line)
            if seen["path"] == "/health":
                return bool(seen["pod"] == f"127.0.0.1:{port}" and seen["pod_status"] == "200")
        return False


BALANCERS: dict[str, type[Balancer]] = {kind.name: kind for kind in (HAProxy, Nginx)}


def allow_files() -> int:
    """Let this process and its children open as many files as they could need here; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 100_000 if hard == resource.RLIM_INFINITY else min(100_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return wanted


# The rolling restart.


class Plan(NamedTuple):
    """A rolling restart; ``readiness_s`` and ``paced_s`` are the pods' drain settings."""

    sockets: int = 600
    pods: int = 3
    tenants: int = 20
    messages_per_s: float = 150.0
    readiness_s: float = 3.0
    paced_s: float = 8.0

    @property
    def budget_s(self) -> float:
        """How long a pod may take to let go of its last socket."""
        return self.readiness_s + self.paced_s


class Rolled(NamedTuple):
    """What a rolling restart did to the clients."""

    sockets: int
    sent: int
    delivered: int
    lost: int
    doubled: int
    out_of_order: int
    resets: int
    reconnects: int
    refused: int
    """Attempts to reconnect that got no socket."""
    most_in_one_second: float
    """The largest part of all sockets that reconnected within any one second."""
    longest_outage_s: float
    """The longest time that a client was without a socket."""
    close_codes: dict[int, int]
    exit_statuses: list[int]
    sockets_at_the_end: list[int]
    """On each pod."""
    took_s: float

    def __str__(self) -> str:
        return " ".join(
            f"{name}={value:.3f}" if isinstance(value, float) else f"{name}={value}".replace(" ", "")
            for name, value in self._asdict().items()
        )


class _Metadata(msgspec.Struct, frozen=True):
    seq: int | None = None
    epoch: str | None = None


class _Data(msgspec.Struct, frozen=True):
    cursor: str = ""
    after_ms: float = 0.0
    resume: dict[str, Any] = {}


class _Seen(msgspec.Struct):
    type: str
    data: _Data
    task_id: str | None = None
    metadata: _Metadata = _Metadata()


_read = msgspec.json.Decoder(_Seen).decode


@dataclass(slots=True)
class _Client:
    """A client as docs/clients.md wants it: comes back with its cursor, after the time that it was told."""

    tenant_id: str
    session_id: str
    sent: int = 0
    received: list[str] = field(default_factory=list)
    cursor: str = ""
    back_at: float = 0.0
    opened_at: list[float] = field(default_factory=list)
    outages_s: list[float] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    resets: int = 0
    refused: int = 0
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    _socket: LeanClient | None = None

    async def run(self, port: int, gate: asyncio.Semaphore) -> None:
        """Hold a socket until cancelled."""
        async with gate:
            self._socket = await self._open(port)
        while True:
            self.codes.append(await asyncio.shield(self._socket.lost))
            gone_at = time.monotonic()
            await asyncio.sleep(self.back_at - gone_at)
            self._socket = await self._open(port)
            self.outages_s.append(self.opened_at[-1] - gone_at)

    async def close(self) -> None:
        """Cut the socket, if there is one."""
        if self._socket is not None:
            self._socket.drop()
            await self._socket.lost

    async def _open(self, port: int) -> LeanClient:
        while True:
            path = f"/ws/{self.session_id}?tenant_id={self.tenant_id}&tenant_tier=free&cursor={self.cursor}"
            client = await connect(port, path, self._on_text)
            if client is not None:
                self.opened_at.append(time.monotonic())
                return client
            self.refused += 1
            await asyncio.sleep(_RETRY_S)

    def _on_text(self, text: bytes) -> None:
        message = _read(text)
        if message.type == "connection_ack":
            self.cursor = self.cursor or message.data.cursor
            self.resets += message.data.resume.get("status") == "reset"
            self.acknowledged.set()
        elif message.type == "reconnect":
            self.back_at = time.monotonic() + message.data.after_ms / 1000
        elif message.metadata.seq is not None and message.task_id is not None:
            self.cursor = f"{message.metadata.epoch}:{message.metadata.seq}"
            self.received.append(message.task_id)
            if message.task_id == f"{self.session_id}.last":
                self.complete.set()


def _push(
    redis_port: int, clients: Sequence[_Client], per_s: float, seed: int, stop: threading.Event
) -> None:
    """Push callbacks to random sessions until told to stop, then a last one to each."""
    choose = random.Random(seed)
    with redis.Redis(port=redis_port) as aes:
        while not stop.wait(1 / per_s):
            client = choose.choice(clients)
            _push_one(aes, client, str(client.sent))
        for client in clients:
            # What was doubled stands in front of it.
            _push_one(aes, client, "last")


def _push_one(aes: redis.Redis, client: _Client, number: str) -> None:
    client.sent += 1
    text = callback(client.tenant_id, client.session_id, f"{client.session_id}.{number}")
    aes.lpush(f"orchestrator:{client.tenant_id}:callbacks", text)


def _restart_one_by_one(pods: Sequence[Pod], balancer: Balancer, plan: Plan) -> list[int]:
    """SIGTERM each pod and start it again, the next one when this one serves again."""
    statuses = []
    for pod in pods:
        statuses.append(pod.stop(plan.budget_s + 30))
        pod.start()
        wait_for(pod.ready, f"pod on {pod.port} ready again")
        _wait_until_taken(balancer, pod)
    return statuses


def _wait_until_taken(balancer: Balancer, pod: Pod) -> None:
    wait_for(lambda: balancer.takes(pod.port), f"{balancer.name} takes the pod on {pod.port}")


async def roll(cluster: Cluster, balancer: Balancer, plan: Plan, seed: int = 1) -> Rolled:
    """Restart all pods of a cluster behind a balancer while messages are pushed to the sockets."""
    began = time.monotonic()
    clients = [_Client(f"tenant-{n % plan.tenants}", f"session-{n}") for n in range(plan.sockets)]
    gate = asyncio.Semaphore(_OPENING_AT_ONCE)
    tasks = [asyncio.create_task(client.run(balancer.port, gate)) for client in clients]
    stop = threading.Event()
    pushing: asyncio.Future[None] | None = None
    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*[client.acknowledged.wait() for client in clients])
        rolling_since = time.monotonic()
        pushing = asyncio.ensure_future(
            asyncio.to_thread(_push, cluster.redis_port, clients, plan.messages_per_s, seed, stop)
        )
        statuses = await asyncio.to_thread(_restart_one_by_one, cluster.pods, balancer, plan)
        stop.set()
        await pushing
        try:
            async with asyncio.timeout(15):
                await asyncio.gather(*[client.complete.wait() for client in clients])
        except TimeoutError:
            pass  # the report says what did not come
        at_the_end = [get(f"{pod.url}/health/detailed")[1]["pod"]["connections"] for pod in cluster.pods]
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *([pushing] if pushing else []), return_exceptions=True)
        await asyncio.gather(*[client.close() for client in clients])
    return _account(clients, statuses, at_the_end, rolling_since, time.monotonic() - began)


def _account(
    clients: Sequence[_Client], statuses: list[int], at_the_end: list[int], since: float, took_s: float
) -> Rolled:
    lost = doubled = disordered = 0
    for client in clients:
        wanted = [*map(str, range(client.sent - 1)), "last"]
        place = {f"{client.session_id}.{number}": at for at, number in enumerate(wanted)}
        lost += len(place.keys() - set(client.received))
        doubled += len(client.received) - len(set(client.received))
        order = [place[task_id] for task_id in dict.fromkeys(client.received)]
        disordered += sum(later < earlier for earlier, later in pairwise(order))
    again = sorted(moment for client in clients for moment in client.opened_at if moment > since)
    crowd = max((bisect_left(again, moment + 1.0) - n for n, moment in enumerate(again)), default=0)
    return Rolled(
        sockets=len(clients),
        sent=sum(client.sent for client in clients),
        delivered=sum(len(client.received) for client in clients),
        lost=lost,
        doubled=doubled,
        out_of_order=disordered,
        resets=sum(client.resets for client in clients),
        reconnects=len(again),
        refused=sum(client.refused for client in clients),
        most_in_one_second=crowd / len(clients),
        longest_outage_s=max((outage for client in clients for outage in client.outages_s), default=0.0),
        close_codes=dict(sorted(Counter(code for client in clients for code in client.codes).items())),
        exit_statuses=statuses,
        sockets_at_the_end=at_the_end,
        took_s=took_s,
    )


def rolled(kind: type[Balancer], folder: Path, plan: Plan) -> Rolled:
    """A rolling restart behind a balancer of this kind, with a cluster of its own.

    Raises:
        OSError: the machine does not allow as many open files as a balancer needs for it.
    """
    allowed, needed = allow_files(), 2 * plan.sockets + 500
    if allowed < needed:
        raise OSError(
            f"{plan.sockets} sockets need {needed} open files, and {allowed} are allowed (ulimit -Hn)"
        )
    readiness_s, paced_s = str(plan.readiness_s), str(plan.paced_s)
    inside = folder / kind.name
    inside.mkdir()
    with (
        Cluster(folder, pods=plan.pods, DRAIN_READINESS_S=readiness_s, DRAIN_TIMEOUT_S=paced_s) as cluster,
        kind(inside, [pod.port for pod in cluster.pods]) as balancer,
    ):
        for pod in cluster.pods:
            _wait_until_taken(balancer, pod)
        return uvloop.run(roll(cluster, balancer, plan))


def main() -> int:
    """The command; exit status 1 if a message was lost, doubled or out of order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("balancers", nargs="*", default=list(BALANCERS), help="haproxy, nginx")
    parser.add_argument("--sockets", type=int, default=2_000)
    parser.add_argument("--pods", type=int, default=3)
    parser.add_argument("--messages-per-s", type=float, default=150.0)
    parser.add_argument("--readiness-s", type=float, default=3.0, help="the pods' DRAIN_READINESS_S")
    parser.add_argument("--paced-s", type=float, default=20.0, help="the pods' DRAIN_TIMEOUT_S")
    arguments = parser.parse_args()
    plan = Plan(
        sockets=arguments.sockets,
        pods=arguments.pods,
        messages_per_s=arguments.messages_per_s,
        readiness_s=arguments.readiness_s,
        paced_s=arguments.paced_s,
    )
    clean = True
    for name in arguments.balancers:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            report = rolled(BALANCERS[name], Path(folder), plan)
        print(f"{name}: {report}", flush=True)
        clean = clean and not (
            report.lost or report.doubled or report.out_of_order or any(report.exit_statuses)
        )
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
