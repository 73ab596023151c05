"""What a tenant far over its limits gets through, and what that costs those who keep to theirs.

    python -m benchmarks.limits [--attack-s N] [--calm-s N] …

Two pods that want tokens, a router, one Valkey, and an agent that takes every action. Twenty quiet tenants
send all the time and get answers. One tenant then sends at twenty times its limit from fifty sockets over
both pods: first with a patience that keeps these sockets open, then with the default one, which closes them
(4029), and they come back. Told is what was accepted beside what was allowed (by Redis's clock), the quiet
tenants' latency before, during and after, and what the processes hold. Then more sockets than are allowed
come at once, and a pod is killed whose places have to become free.

Machines differ, and other work on this one shows: latencies are worth quoting only as ratios within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import redis
import uvloop

from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.tokens import issue_token
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster

SECRET = "a secret of the benchmark's own, and long enough"
OFFENDER = "offender"
QUIET = 20
QUIET_EVERY_S = 0.5
SOCKETS = 50
TIMES = 20
A_MINUTE = 600
"""The offender's limit: 600 at once, and then ten a second."""

LIMITS = {
    "SENDS_PER_MINUTE": f"{A_MINUTE},20,600,0",
    "SENDS_PER_DAY": "0,0,0,0",
    "SENDS_PER_SESSION_HOUR": "0,0,0,0",
    "CONNECTIONS_PER_TENANT": "60,0,0,0",
    "CONNECTIONS_PER_SESSION": "12",
    "CONNECTIONS_PER_USER": "16",
    "CONNECTIONS_PER_ADDRESS": "20",
    "CONNECTIONS_MAX": "150",
    "TRUSTED_PROXIES": "127.0.0.1",
}
PATIENT = {"MESSAGES_PER_S": "0", "RATE_LIMIT_PATIENCE": "1000000"}
"""What keeps the sockets of the first attack open: no limit per socket, and no end to the pod's patience."""

RATIOS = ("ack_p50_ms", "ack_p99_ms", "answer_p50_ms", "answer_p99_ms")
"""The latencies of a `Part`."""

_QUEUE = "nooble4:dev:agent_execution_service:actions:"
_spawn = multiprocessing.get_context("spawn")


def token(tenant_id: str, tier: str = "free", **more: Any) -> str:
    """A token that the cluster's pods accept."""
    return issue_token(Settings(jwt_secret=SECRET), time.time(), tenant_id=tenant_id, tier=tier, **more)


class TokenCluster(Cluster):
    """A cluster whose pods want tokens."""

    def __init__(self, folder: Path, **settings: str) -> None:
        everything: Any = {"AUTH": "jwt", "JWT_SECRET": SECRET, **LIMITS, **settings}
        super().__init__(folder, **everything)

    def __enter__(self) -> TokenCluster:
        super().__enter__()
        return self

    @property
    def ports(self) -> list[int]:
        """The pods'."""
        return [pod.port for pod in self.pods]

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A client of its Redis."""
        with redis.Redis(port=self.redis_port) as client:
            yield client


# Beside what is measured, in processes of their own: nothing of it may share an interpreter with the clock.


@contextmanager
def _beside(work: Callable[[Connection], None]) -> Iterator[Connection]:
    """Run something in a process of its own, with a line to it."""
    ours, theirs = _spawn.Pipe()
    child = _spawn.Process(target=work, args=(theirs,))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()


def _agent(redis_port: int, told: Connection) -> None:
    """Take every action, count it for its tenant, answer the quiet ones; whoever asks is told the counts."""
    taken = Counter[str]()
    queues = [_QUEUE + tier for tier in TIERS]
    with redis.Redis(port=redis_port) as client:
        told.send("works")
        while True:
            if told.poll():
                told.recv()
                told.send(taken)
            popped: Any = client.brpop(queues, timeout=0.1)
            if popped is None:
                continue
            action = json.loads(popped[1])
            taken[action["tenant_id"]] += 1
            if action["tenant_id"] != OFFENDER:
                client.lpush(action["callback_queue"], _answer(action))


def _answer(action: dict[str, Any]) -> str:
    """A callback that says when it was pushed."""
    ids = {name: action[name] for name in ("task_id", "tenant_id", "tenant_tier", "session_id")}
    return json.dumps(
        {
            **ids,
            "action_id": f"exec_cb_{action['task_id']}",
            "action_type": "execution.callback",
            "status": "completed",
            "result": {"response": repr(time.monotonic()), "sources": []},
        }
    )


@dataclass
class Attack:
    """What an attack came to.

    Attributes:
        accepted: sends that were acked.
        refused: sends that were answered by ``rate_limited``.
        odd: other errors, by error code.
        began, ended: by Redis's clock, right before the first send and right after the last answer.
        closed: sockets that the pods closed, by code.
        untold: of those closed with 4029, how many had not been told ``retry_after_ms``.
        told: to how many times those that were closed with 4029 had been told it, at least.
    """

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    odd: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0
    closed: Counter[int] = field(default_factory=Counter)
    untold: int = 0
    told: int = 1_000_000

    @property
    def allowed(self) -> float:
        """What the limit allowed in that time."""
        return A_MINUTE + (self.ended - self.began) * A_MINUTE / 60

    @property
    def answered(self) -> int:
        """Sends that were answered."""
        return self.accepted + self.refused + self.odd.total()


class _Aggressor:
    """One of the offender's sockets; comes back when it is closed."""

    def __init__(self, attack: Attack, port: int, number: int, bearer: str) -> None:
        self._attack = attack
        self._port = port
        self._path = f"/ws/bad-{number}?agent_id=agent-1&token={bearer}"
        self._told = 0
        self._socket: LeanClient | None = None
        self.inside = asyncio.Event()

    async def run(self) -> None:
        while True:
            self._told = 0
            self._socket = await connect(self._port, self._path, self._on_text)
            if self._socket is None:
                self._attack.odd["refused at the door"] += 1
                await asyncio.sleep(0.1)
                continue
            code = await asyncio.shield(self._socket.lost)
            self.inside.clear()
            self._attack.closed[code] += 1
            if code == 4029:
                self._attack.untold += self._told == 0
                self._attack.told = min(self._attack.told, self._told)

    def send(self, number: int) -> None:
        if self.inside.is_set() and self._socket is not None:
            self._attack.sent += 1
            self._socket.send_text(f'{{"type":"chat","message":"more, more","ref":{number}}}')

    async def end(self) -> None:
        if self._socket is not None:
            self._socket.drop()
            await self._socket.lost

    def _on_text(self, text: bytes) -> None:
        message = json.loads(text)
        kind, data = message["type"], message["data"]
        if kind == "connection_ack":
            self.inside.set()
        elif kind == "ack":
            self._attack.accepted += 1
        elif kind == "error" and data["error_code"] == "rate_limited":
            self._attack.refused += 1
            self._told += data.get("retry_after_ms", 0) > 0
        elif kind == "error":
            self._attack.odd[data["error_code"]] += 1


def _attack(redis_port: int, ports: list[int], bearer: str, seconds: float, told: Connection) -> None:
    """Send at twenty times the limit, evenly, over all sockets."""
    rate = TIMES * A_MINUTE / 60

    async def work() -> Attack:
        attack = Attack()
        sockets = [_Aggressor(attack, ports[n % len(ports)], n, bearer) for n in range(SOCKETS)]
        tasks = [asyncio.create_task(socket.run()) for socket in sockets]
        async with asyncio.timeout(20):
            await asyncio.gather(*[socket.inside.wait() for socket in sockets])
        with redis.Redis(port=redis_port) as client:
            told.send("begins")
            attack.began = _now(client)
            began = time.monotonic()
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                sockets[number % SOCKETS].send(number)
            patience = time.monotonic() + 1.0
            while attack.answered < attack.sent and time.monotonic() < patience:
                await asyncio.sleep(0.005)
            attack.ended = _now(client)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*[socket.end() for socket in sockets])
        return attack

    told.send(uvloop.run(work()))


def _now(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6


# What is measured.


@dataclass
class Part:
    """The quiet tenants in one part of the run, and what the processes held at its end."""

    acks: int
    answers: int
    ack_p50_ms: float
    ack_p99_ms: float
    answer_p50_ms: float
    answer_p99_ms: float
    pods_kib: list[int]
    valkey_kib: int


class Quiet:
    """Tenants that keep to their limits: each sends every half second, and is answered."""

    def __init__(self, cluster: TokenCluster) -> None:
        self._cluster = cluster
        self._sockets: list[LeanClient] = []
        self._sent_at: dict[int, float] = {}
        self._acks: list[float] = []
        self._answers: list[float] = []
        self.sent = 0
        self.answered = 0
        self.odd = Counter[str]()

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Their sockets are open, and they send."""
        for number in range(QUIET):
            bearer = token(f"quiet-{number}", "professional", user_id="someone")
            path = f"/ws/s?agent_id=agent-1&token={bearer}"
            port = self._cluster.ports[number % 2]
            socket = await connect(port, path, self._on_text)
            assert socket is not None, "a quiet tenant's socket was refused"
            self._sockets.append(socket)
        sending = asyncio.create_task(self._send())
        try:
            yield
            sending.cancel()
            await self._all_answered()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            for socket in self._sockets:
                socket.drop()
                await socket.lost

    async def _send(self) -> None:
        began = time.monotonic()
        while True:
            due = began + self.sent * QUIET_EVERY_S / QUIET
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._sent_at[self.sent] = time.monotonic()
            self._sockets[self.sent % QUIET].send_text(
                f'{{"type":"chat","message":"hello","ref":{self.sent}}}'
            )
            self.sent += 1

    def _on_text(self, text: bytes) -> None:
        now, message = time.monotonic(), json.loads(text)
        data = message["data"]
        if message["type"] == "ack":
            self._acks.append(now - self._sent_at.pop(data["ref"]))
        elif message["type"] == "agent_response":
            self.answered += 1
            self._answers.append(now - float(data["response"]))
        elif message["type"] == "error":
            self.odd[data["error_code"]] += 1

    def begin(self) -> None:
        """What was measured so far belongs to no part."""
        self._acks, self._answers = [], []

    def end(self) -> Part:
        """The figures since `begin`."""
        ack, answer = (
            statistics.quantiles(times, n=100, method="inclusive") for times in (self._acks, self._answers)
        )
        with self._cluster.redis() as client:
            memory: Any = client.info("memory")
        return Part(
            len(self._acks),
            len(self._answers),
            ack[49] * 1e3,
            ack[98] * 1e3,
            answer[49] * 1e3,
            answer[98] * 1e3,
            [pod.rss_kib() for pod in self._cluster.pods],
            memory["used_memory"] // 1024,
        )

    async def _all_answered(self) -> None:
        deadline = time.monotonic() + 5.0
        while self.answered < self.sent and time.monotonic() < deadline:
            await asyncio.sleep(0.01)


@dataclass
class Siege:
    """An attack and the time around it.

    Attributes:
        queued: the offender's actions that the agent took from the queues.
        quiet_sent: sends of the quiet tenants; and how many were answered, and errors that they got.
    """

    before: Part
    during: Part
    after: Part
    attack: Attack
    queued: int
    quiet_sent: int
    quiet_answered: int
    quiet_odd: Counter[str]

    def ratio(self, name: str) -> float:
        """A latency during the attack, as a multiple of that without it (the mean of before and after)."""
        calm = (getattr(self.before, name) + getattr(self.after, name)) / 2
        return float(getattr(self.during, name) / calm)

    @property
    def over(self) -> float:
        """How far what was queued is from what was allowed, as a part of that."""
        return self.queued / self.attack.allowed - 1


async def besiege(cluster: TokenCluster, attack_s: float, calm_s: float) -> Siege:
    """Measure the quiet tenants before, during and after an attack."""
    quiet = Quiet(cluster)
    work = partial(_attack, cluster.redis_port, cluster.ports, token(OFFENDER), attack_s)
    with _beside(partial(_agent, cluster.redis_port)) as agent:
        await asyncio.to_thread(agent.recv)
        async with quiet.talking():
            await asyncio.sleep(1.0)  # the first messages find everything cold
            before = await _calm(quiet, calm_s)
            with _beside(work) as offender:
                await asyncio.to_thread(offender.recv)
                quiet.begin()
                attack: Attack = await asyncio.to_thread(offender.recv)
                during = quiet.end()
            after = await _calm(quiet, calm_s)
        with cluster.redis() as client:
            while client.exists(*[_QUEUE + tier for tier in TIERS]):
                await asyncio.sleep(0.05)
        agent.send("how many?")
        taken: Counter[str] = await asyncio.to_thread(agent.recv)
    return Siege(before, during, after, attack, taken[OFFENDER], quiet.sent, quiet.answered, quiet.odd)


async def _calm(quiet: Quiet, seconds: float) -> Part:
    quiet.begin()
    await asyncio.sleep(seconds)
    return quiet.end()


# Too many sockets.


class Ticket(NamedTuple):
    """Whose a socket shall be.

    Attributes:
        forwarded: its client's address, as a load balancer tells it.
    """

    session_id: str
    bearer: str
    forwarded: str | None = None


class Entry(NamedTuple):
    """What became of an attempt to open a socket.

    Attributes:
        status: 101 if it was let in and greeted.
        limit: as the answer names it, if it was not.
        retry_after: that header.
        stream: to close it.
    """

    port: int
    status: int
    limit: str | None
    retry_after: str | None
    stream: asyncio.StreamWriter


async def enter(port: int, ticket: Ticket) -> Entry:
    """Try to open a socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    forwarded = "" if ticket.forwarded is None else f"X-Forwarded-For: {ticket.forwarded}\r\n"
    writer.write(
        f"GET /ws/{ticket.session_id} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {ticket.bearer}\r\n{forwarded}\r\n".encode()
    )
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    status = int(first.split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status == 101:
        message = await _first_message(reader)
        assert message["type"] == "connection_ack", message
        return Entry(port, status, None, None, writer)
    problem = json.loads(await reader.readexactly(int(headers["content-length"])))
    return Entry(port, status, problem.get("limit"), headers.get("retry-after"), writer)


async def _first_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    length = (await reader.readexactly(2))[1]
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    message: dict[str, Any] = json.loads(await reader.readexactly(length))
    return message


async def leave(entries: Sequence[Entry]) -> None:
    """Cut all of them off."""
    for entry in entries:
        entry.stream.transport.abort()
    await asyncio.gather(*[entry.stream.wait_closed() for entry in entries], return_exceptions=True)


class Crowd(NamedTuple):
    """One limit, and who is let in by it.

    Attributes:
        limit: its name in the answer that refuses.
        most: how many it lets in.
        status: with which others are refused.
        each_pod: whether it is each pod's own.
        ticket: whose the n-th socket is.
    """

    limit: str
    most: int
    status: int
    each_pod: bool
    ticket: Callable[[int], Ticket]


def crowds() -> list[Crowd]:
    """One for each limit; the enterprise tier is not limited as a tenant."""
    tenant, others = token("crowd"), token("many", "enterprise")
    user = token("many", "enterprise", user_id="busy@example.com")
    return [
        Crowd("tenant", 60, 429, False, lambda n: Ticket(f"t{n}", tenant)),
        Crowd("session", 12, 429, False, lambda _n: Ticket("same", others)),
        Crowd("user", 16, 429, False, lambda n: Ticket(f"u{n}", user)),
        Crowd("address", 20, 429, True, lambda n: Ticket(f"a{n}", others, "198.51.100.7")),
        Crowd("pod", 150, 503, True, lambda n: Ticket(f"p{n}", others)),
    ]


async def rush(ports: Sequence[int], crowd: Crowd, too_many: int) -> list[Entry]:
    """As many as are allowed and some more, all at once over all pods."""
    count = crowd.most * (len(ports) if crowd.each_pod else 1) + too_many
    return list(await asyncio.gather(*[enter(ports[n % len(ports)], crowd.ticket(n)) for n in range(count)]))


class Freed(NamedTuple):
    """What became of a killed pod's places.

    Attributes:
        held: how many sockets it had.
        taken: how many were let in on the other pod afterwards.
        first_s: from the kill until the first of them, in seconds.
        last_s: until the last.
    """

    held: int
    taken: int
    first_s: float
    last_s: float


async def kill_and_refill(cluster: TokenCluster, crowd: Crowd, timeout_s: float = 15.0) -> Freed:
    """Fill a limit over both pods, kill one, and fill its places on the other."""
    killed, left = cluster.pods
    entries = await rush(cluster.ports, crowd, 10)
    held = sum(entry.port == killed.port for entry in entries if entry.status == 101)
    killed.kill()
    began, taken, moments = time.monotonic(), 0, [0.0]
    while taken < held and time.monotonic() < began + timeout_s:
        entry = await enter(left.port, crowd.ticket(1_000 + len(entries)))
        entries.append(entry)
        if entry.status == 101:
            taken += 1
            moments.append(time.monotonic() - began)
        else:
            await asyncio.sleep(0.05)
    entries.append(await enter(left.port, crowd.ticket(999)))
    assert entries[-1].status == crowd.status, "more were let in than places became free"
    await leave(entries)
    return Freed(held, taken, moments[min(1, taken)], moments[-1])


@dataclass
class Result:
    """All figures."""

    siege: Siege
    impatient: Siege
    let_in: dict[str, dict[str, Any]]
    freed: dict[str, float]


def _tell(name: str, siege: Siege) -> None:
    attack = siege.attack
    print(
        f"{name}: {attack.sent} sends at {TIMES} times the limit in {attack.ended - attack.began:.2f} s: "
        f"{attack.accepted} acked, {siege.queued} queued, {attack.allowed:.1f} allowed ({siege.over:+.2%}); "
        f"{attack.refused} told to wait, closed: {dict(attack.closed)}, other errors: {dict(attack.odd)}"
    )
    for words, part in (("before", siege.before), ("during", siege.during), ("after", siege.after)):
        print(
            f"  {words}: quiet send to ack p50 {part.ack_p50_ms:.2f} ms, p99 {part.ack_p99_ms:.2f} ms; "
            f"callback to socket p50 {part.answer_p50_ms:.2f} ms, p99 {part.answer_p99_ms:.2f} ms; "
            f"pods {' and '.join(f'{kib / 1024:.1f}' for kib in part.pods_kib)} MiB, "
            f"Valkey {part.valkey_kib / 1024:.2f} MiB"
        )
    ratios = ", ".join(f"{name} {siege.ratio(name):.2f}" for name in RATIOS)
    print(f"  during / without: {ratios}", flush=True)


def _tell_rush(crowd: Crowd, entries: Sequence[Entry]) -> dict[str, Any]:
    let_in = Counter(entry.port for entry in entries if entry.status == 101)
    answers = Counter((entry.status, entry.limit) for entry in entries if entry.status != 101)
    where = " on each pod" if crowd.each_pod else ""
    print(
        f"{crowd.limit}: {len(entries)} at once, {crowd.most} allowed{where}; let in {list(let_in.values())}"
    )
    for (status, limit), count in answers.items():
        print(f"  {count} answered {status}, limit: {limit}", flush=True)
    refused = {f"{status} {limit}": count for (status, limit), count in answers.items()}
    return {"allowed": crowd.most, "each_pod": crowd.each_pod, "let_in": [*let_in.values()], **refused}


async def _measure_rushes(cluster: TokenCluster) -> tuple[dict[str, dict[str, Any]], Freed]:
    told = {}
    for crowd in crowds():
        entries = await rush(cluster.ports, crowd, 20)
        told[crowd.limit] = _tell_rush(crowd, entries)
        await leave(entries)
        await asyncio.sleep(0.5)  # until the pods know that they are gone
    return told, await kill_and_refill(cluster, crowds()[0])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack-s", type=float, default=30.0)
    parser.add_argument("--calm-s", type=float, default=15.0, help="before and after it, each")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/limits.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, TokenCluster(Path(folder), **PATIENT) as cluster:
        siege = uvloop.run(besiege(cluster, arguments.attack_s, arguments.calm_s))
        _tell("sockets kept open", siege)
        let_in, freed = uvloop.run(_measure_rushes(cluster))
    print(f"a killed pod's {freed.held} places: free after {freed.first_s:.2f} to {freed.last_s:.2f} s")
    with tempfile.TemporaryDirectory() as folder, TokenCluster(Path(folder)) as cluster:
        impatient = uvloop.run(besiege(cluster, arguments.attack_s, arguments.calm_s / 3))
        _tell("default patience", impatient)
    result = Result(siege, impatient, let_in, freed._asdict())
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, default=vars, indent=2))
    calm, loud = siege.before, siege.after
    print(
        f"accepted={siege.queued} allowed={siege.attack.allowed:.1f} off_by={siege.over:+.2%} "
        + " ".join(f"{name.removesuffix('_ms')}_ratio={siege.ratio(name):.2f}" for name in RATIOS)
        + f" pods_grew_mib={(sum(loud.pods_kib) - sum(calm.pods_kib)) / 1024:.1f} "
        f"valkey_grew_mib={(loud.valkey_kib - calm.valkey_kib) / 1024:.2f} "
        f"closed_4029={impatient.attack.closed[4029]} untold={impatient.attack.untold} "
        f"freed_s={freed.last_s:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
