"""Counts what was sent, delivered, lost, doubled and out of order, while sockets and processes are cut down.

python -m tests.support.accounting [--kills N] [--sessions N] …     (`make chaos`)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import redis
import uvloop

from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Process, wait_for

_RETRY_S = 0.05


class _Metadata(msgspec.Struct, frozen=True):
    seq: int | None = None
    epoch: str | None = None


class _Seen(msgspec.Struct):
    """What the accounting reads of a message."""

    type: str
    task_id: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    metadata: _Metadata = _Metadata()


_read = msgspec.json.Decoder(_Seen).decode


class Report(NamedTuple):
    """The accounting; ``longest_outage_s`` is the longest time a client was without an open socket."""

    sent: int
    delivered: int
    lost: int
    doubled: int
    out_of_order: int
    longest_outage_s: float

    def __str__(self) -> str:
        return " ".join(
            f"{name}={value:.2f}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self._asdict().items()
        )

    @property
    def clean(self) -> bool:
        """Whether every message came exactly once and in order."""
        return self.delivered == self.sent and not (self.lost or self.doubled or self.out_of_order)


@dataclass(slots=True)
class Session:
    """One session's client: reconnects with its cursor, to a random pod, for as long as it is told to."""

    tenant_id: str
    session_id: str
    each: int
    drop_at: list[int]
    """After how many messages its socket is dropped."""
    received: list[str] = field(default_factory=list)
    cursor: str = ""
    longest_outage_s: float = 0.0
    resets: int = 0
    all_but_last: asyncio.Event = field(default_factory=asyncio.Event)
    last: asyncio.Event = field(default_factory=asyncio.Event)
    """The last callback is pushed when all others have come: what was doubled stands in front of it."""
    _socket: LeanClient | None = None

    @property
    def expected(self) -> int:
        """How many messages have to come."""
        return self.each + 1

    async def run(self, ports: list[int], choose: random.Random) -> None:
        """Hold a socket until the last message has come."""
        while not self.last.is_set():
            gone_at = time.monotonic()
            self._socket = await self._open(ports, choose)
            self.longest_outage_s = max(self.longest_outage_s, time.monotonic() - gone_at)
            await asyncio.shield(self._socket.lost)  # whoever closes the socket waits for it too

    async def close(self) -> None:
        """Cut the socket, if there is one."""
        if self._socket is not None:
            self._socket.drop()
            await self._socket.lost

    async def _open(self, ports: list[int], choose: random.Random) -> LeanClient:
        while True:
            path = f"/ws/{self.session_id}?tenant_id={self.tenant_id}&tenant_tier=free&cursor={self.cursor}"
            socket = await connect(choose.choice(ports), path, self._on_text)
            if socket is not None:
                return socket
            await asyncio.sleep(_RETRY_S)

    def _on_text(self, text: bytes) -> None:
        message = _read(text)
        if message.type == "connection_ack":
            data = json.loads(bytes(message.data))
            self.resets += data["resume"]["status"] == "reset"
            if not self.cursor:
                self.cursor = data["cursor"]
        if message.metadata.seq is None or message.task_id is None:
            return
        self.cursor = f"{message.metadata.epoch}:{message.metadata.seq}"
        self.received.append(message.task_id)
        if len(set(self.received)) >= self.each:
            self.all_but_last.set()
        if message.task_id == f"{self.session_id}.{self.each}":
            self.last.set()
        if self._socket is not None and self.drop_at and len(self.received) >= self.drop_at[0]:
            self.drop_at.pop(0)
            self._socket.drop()


class Load(NamedTuple):
    """What is sent; ``pace_s`` spreads the pushing over so many seconds (0: at full speed)."""

    sessions: int = 500
    tenants: int = 50
    each: int = 99
    drops: int = 5
    pace_s: float = 0.0
    duplicates: float = 0.0
    """Part of the callbacks that the agent pushes twice."""


def callback(tenant_id: str, session_id: str, task_id: str, size: int = 300) -> str:
    """A completed callback as the AES sends it, with an answer of ``size`` characters."""
    return json.dumps(
        {
            "action_id": f"exec_cb_{task_id}",
            "action_type": "execution.callback",
            "task_id": task_id,
            "tenant_id": tenant_id,
            "tenant_tier": "free",
            "session_id": session_id,
            "status": "completed",
            "result": {"response": "x" * size, "sources": [], "agent_info": {"model_used": "test"}},
            "execution_time": 1.5,
            "tokens_used": {"total": 17},
        }
    )


def push(redis_port: int, sessions: list[Session], load: Load, seed: int) -> int:
    """Push every session's callbacks, mixed, each session's in order; outlives Redis restarts."""
    choose = random.Random(seed)
    order = [session for session in sessions for _ in range(load.each)]
    choose.shuffle(order)
    numbers = dict.fromkeys((session.session_id for session in sessions), 0)
    began, batch = time.monotonic(), 50
    with redis.Redis(port=redis_port) as client:
        for start in range(0, len(order), batch):
            lists: dict[str, list[str]] = {}
            for session in order[start : start + batch]:
                number = numbers[session.session_id]
                numbers[session.session_id] += 1
                text = callback(session.tenant_id, session.session_id, f"{session.session_id}.{number}")
                copies = 2 if choose.random() < load.duplicates else 1
                lists.setdefault(f"orchestrator:{session.tenant_id}:callbacks", []).extend([text] * copies)
            for name, texts in lists.items():
                _push_until_taken(client, name, texts)
            due_s = load.pace_s * (start + batch) / len(order) - (time.monotonic() - began)
            if due_s > 0:
                time.sleep(due_s)
    return len(order)


def push_last(redis_port: int, sessions: list[Session]) -> int:
    """Push every session's last callback."""
    with redis.Redis(port=redis_port) as client:
        for session in sessions:
            text = callback(session.tenant_id, session.session_id, f"{session.session_id}.{session.each}")
            _push_until_taken(client, f"orchestrator:{session.tenant_id}:callbacks", [text])
    return len(sessions)


def _push_until_taken(client: redis.Redis, name: str, texts: list[str]) -> None:
    """As the AES does: a push that failed is made again (and may so be there twice)."""
    while True:
        try:
            client.lpush(name, *texts)
        except redis.RedisError:
            time.sleep(0.05)
        else:
            return


async def killer(processes: list[Process], kills: int, over_s: float, choose: random.Random) -> None:
    """``kill -9`` each process ``kills`` times at random moments, and start it again."""
    moments = sorted(
        (choose.uniform(0.05, 0.95) * over_s, p) for p in range(len(processes)) for _ in range(kills)
    )
    began = time.monotonic()
    for moment, which in moments:
        await asyncio.sleep(max(0.0, moment - (time.monotonic() - began)))
        processes[which].kill()
        await asyncio.sleep(choose.uniform(0.0, 0.3))
        processes[which].start()


def account(sessions: list[Session], sent: int) -> Report:
    """Compare what came with what was sent."""
    lost = doubled = disordered = delivered = 0
    for session in sessions:
        wanted = [f"{session.session_id}.{n}" for n in range(session.expected)]
        delivered += len(session.received)
        lost += len(set(wanted) - set(session.received))
        doubled += len(session.received) - len(set(session.received))
        numbers = [int(task_id.rpartition(".")[2]) for task_id in dict.fromkeys(session.received)]
        disordered += sum(later < earlier for earlier, later in pairwise(numbers))
    return Report(sent, delivered, lost, doubled, disordered, max(s.longest_outage_s for s in sessions))


async def run(cluster: Cluster, load: Load, seed: int, *, kills: int = 0, timeout_s: float = 60.0) -> Report:
    """One accounting run against a running cluster."""
    choose = random.Random(seed)
    sessions = [
        Session(
            f"tenant-{n % load.tenants}",
            f"session-{n}",
            load.each,
            sorted(choose.sample(range(1, load.each), load.drops)),
        )
        for n in range(load.sessions)
    ]
    ports = [pod.port for pod in cluster.pods]
    clients = [asyncio.create_task(session.run(ports, choose)) for session in sessions]
    faults = asyncio.create_task(
        killer([*cluster.pods[:1], *cluster.routers], kills, load.pace_s, choose)
        if kills
        else asyncio.sleep(0)
    )
    try:
        sent = await asyncio.to_thread(push, cluster.redis_port, sessions, load, seed)
        await faults
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*[session.all_but_last.wait() for session in sessions])
            sent += await asyncio.to_thread(push_last, cluster.redis_port, sessions)
            await asyncio.gather(*[session.last.wait() for session in sessions])
    except TimeoutError:
        pass  # the report says what did not come
    finally:
        for task in (*clients, faults):
            task.cancel()
        await asyncio.gather(*clients, faults, return_exceptions=True)
        await asyncio.gather(*[session.close() for session in sessions])
    return account(sessions, sent)


def main() -> int:
    """The command; exit status 1 unless every message came exactly once and in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--each", type=int, default=99, help="callbacks per session, before a last one")
    parser.add_argument("--drops", type=int, default=5, help="times that each socket is dropped")
    parser.add_argument("--kills", type=int, default=5, help="kill -9 of one pod and of the router, each")
    parser.add_argument("--duration-s", type=float, default=30.0, help="time over which callbacks are pushed")
    parser.add_argument("--duplicates", type=float, default=0.05, help="part of them that is pushed twice")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    load = Load(
        arguments.sessions,
        arguments.tenants,
        arguments.each,
        arguments.drops,
        arguments.duration_s,
        arguments.duplicates,
    )
    print(f"seed={arguments.seed} {load} kills={arguments.kills}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        began = time.monotonic()
        report = uvloop.run(run(cluster, load, arguments.seed, kills=arguments.kills))
        wait_for(lambda: all(pod.ready() for pod in cluster.pods), "pods ready again")
        print(f"took_s={time.monotonic() - began:.1f}")
        print(report)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
