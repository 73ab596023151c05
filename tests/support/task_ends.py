"""Counts how tasks end: agents are killed in the middle, and cancel, answers and deadline race.

    python -m tests.support.task_ends [--tasks 1000]

Prints a line for each part: tasks, how many terminal messages each got, and whether record and log agree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from redis.asyncio import Redis

from tests.support.processes import Cluster, Process

GRACE_S = 0.5
QUEUE = "nooble4:dev:agent_execution_service:actions:free"
_SESSIONS = 50
_AT_ONCE = 100
_TERMINAL = ("agent_response", "error")

Client = Any


@dataclass
class Ends:
    """What came of the tasks of one part."""

    tasks: int = 0
    by_count: Counter[int] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    disagreeing: int = 0
    kills: int = 0

    @property
    def right(self) -> bool:
        return dict(self.by_count) == {1: self.tasks} and not self.disagreeing

    def __str__(self) -> str:
        statuses = " ".join(f"{status}={count}" for status, count in sorted(self.by_status.items()))
        once = self.by_count[1]
        return (
            f"tasks={self.tasks} ended_once={once} never={self.by_count[0]} "
            f"more={self.tasks - once - self.by_count[0]} disagreeing={self.disagreeing} "
            f"kills={self.kills} {statuses}"
        )


class World:
    """A cluster, its clients' HTTP and the AES's Redis."""

    def __init__(self, cluster: Cluster, http: httpx.AsyncClient, aes: Client) -> None:
        self.cluster = cluster
        self.http = http
        self.aes = aes
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def _headers(self, session_id: str) -> dict[str, str]:
        return {
            "X-Tenant-ID": "acme",
            "X-Tenant-Tier": "free",
            "X-Agent-ID": "agent-1",
            "X-Session-ID": session_id,
        }

    def url(self, path: str) -> str:
        return f"{random.choice(self.cluster.pods).url}/api/chat/{path}"

    async def send(self, session_id: str, timeout_s: int) -> str:
        headers = {
            **self._headers(session_id),
            "X-Task-Timeout": str(timeout_s),
            "Idempotency-Key": str(uuid4()),
        }
        async with self._slots:
            try:
                answer = await self.http.post(self.url("send"), json={"message": "hello"}, headers=headers)
            except httpx.TransportError as error:  # as a client would: the same again
                print(f"sent again: {error!r}", flush=True)
                answer = await self.http.post(self.url("send"), json={"message": "hello"}, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["task_id"])

    async def cancel(self, session_id: str, task_id: str) -> None:
        headers = self._headers(session_id)
        answer = await self.http.post(self.url(f"tasks/{task_id}/cancel"), json={}, headers=headers)
        assert answer.status_code == 200, answer.text

    async def record(self, session_id: str, task_id: str) -> dict[str, Any]:
        async with self._slots:
            answer = await self.http.get(self.url(f"tasks/{task_id}"), headers=self._headers(session_id))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def log(self, session_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor, more = "", True
        while more:
            query = f"?cursor={cursor}" if cursor else ""
            path = self.url(f"sessions/{session_id}/messages{query}")
            page = (await self.http.get(path, headers=self._headers(session_id))).json()
            found += page["messages"]
            cursor, more = page["cursor"], page["more"]
        return found

    async def count(self, tasks: dict[str, str]) -> Ends:
        """How each task ended, in the log and by its record."""
        ends = Ends(len(tasks))
        logs = await asyncio.gather(*[self.log(session) for session in sorted(set(tasks.values()))])
        told: dict[str, list[str]] = {task_id: [] for task_id in tasks}
        for message in (one for log in logs for one in log if one["type"] in _TERMINAL):
            if message["task_id"] in told:
                told[message["task_id"]].append(message["data"]["status"])
        records = await asyncio.gather(*[self.record(session, task) for task, session in tasks.items()])
        for record in records:
            statuses = told[record["task_id"]]
            ends.by_count[len(statuses)] += 1
            ends.by_status[record["status"]] += 1
            ends.disagreeing += statuses != [record["status"]]
        return ends


def answer_of(task_id: str, session_id: str, action_id: str) -> str:
    return json.dumps(
        {
            "action_id": action_id,
            "action_type": "execution.callback",
            "task_id": task_id,
            "tenant_id": "acme",
            "session_id": session_id,
            "status": "completed",
            "result": {"response": f"answer {action_id}"},
        }
    )


async def agent(port: int) -> None:
    """An agent: takes a task at a time, says something, and answers after a moment."""
    choose = random.Random()
    async with Redis(port=port, decode_responses=True) as aes:

        async def work() -> None:
            while True:
                taken = await aes.brpop([QUEUE], 1)
                if taken is None:
                    continue
                action = json.loads(taken[1])
                base = {name: action[name] for name in ("task_id", "tenant_id", "session_id")}
                for offset in range(choose.randrange(4)):
                    data = {"delta": "x", "offset": offset}
                    piece = {**base, "action_type": "execution.chunk", "data": data}
                    await aes.lpush(action["callback_queue"], json.dumps(piece))
                    await asyncio.sleep(choose.uniform(0, 0.1))
                done = answer_of(action["task_id"], action["session_id"], str(uuid4()))
                await aes.lpush(action["callback_queue"], done)

        await asyncio.gather(*[work() for _ in range(20)])


async def killed_agents(world: World, count: int) -> Ends:
    """Agents die all the time; what they had taken is nobody's any more, and ends by its deadline."""
    port = str(world.cluster.redis_port)
    command = [sys.executable, "-m", "tests.support.task_ends", "--agent", port]
    with tempfile.TemporaryDirectory() as folder:
        worker = Process(command, {}, Path(folder) / "agent.log")
        over = asyncio.Event()
        kills = 0

        async def kill() -> None:
            nonlocal kills
            while not over.is_set():
                worker.start()
                await asyncio.sleep(random.uniform(0.6, 1.2))
                await asyncio.to_thread(worker.kill)
                kills += 1

        killing = asyncio.create_task(kill())
        sessions = [f"killed-{number % _SESSIONS}" for number in range(count)]
        sent = await asyncio.gather(*[world.send(session, 2) for session in sessions])
        tasks = dict(zip(sent, sessions, strict=True))
        await all_ended(world, tasks)
        over.set()
        await killing
    ends = await world.count(tasks)
    ends.kills = kills
    return ends


async def races(world: World, count: int) -> Ends:
    """Cancel, answer, its copy, another answer and the deadline, all within 50 ms."""
    tasks: dict[str, str] = {}

    async def one(number: int) -> None:
        session_id = f"race-{number % _SESSIONS}"
        task_id = await world.send(session_id, 1)
        tasks[task_id] = session_id
        record = await world.record(session_id, task_id)
        ends_at = _seconds(record["deadline_at"]) + GRACE_S + random.uniform(-0.05, 0.2)
        first = answer_of(task_id, session_id, str(uuid4()))
        other = answer_of(task_id, session_id, str(uuid4()))

        async def at(work: Any) -> None:
            await asyncio.sleep(max(0.0, ends_at + random.uniform(0, 0.05) - time.time()))
            await work()

        callbacks = "orchestrator:acme:callbacks"
        pushes = [lambda text=text: world.aes.lpush(callbacks, text) for text in (first, first, other)]
        await asyncio.gather(*map(at, pushes), at(lambda: world.cancel(session_id, task_id)))

    for start in range(0, count, _AT_ONCE):
        await asyncio.gather(*[one(number) for number in range(start, min(start + _AT_ONCE, count))])
    await all_ended(world, tasks)
    return await world.count(tasks)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def all_ended(world: World, tasks: dict[str, str]) -> None:
    """Wait until every task's record says that it has ended."""
    waiting = dict(tasks)
    async with asyncio.timeout(120):
        while waiting:
            records = await asyncio.gather(*[world.record(s, t) for t, s in list(waiting.items())[:200]])
            for record in records:
                if record["ended_at"] is not None:
                    waiting.pop(record["task_id"])
            await asyncio.sleep(0.1)
        while await world.aes.llen("orchestrator:acme:callbacks"):  # noqa: ASYNC110  # Redis has no event for that
            await asyncio.sleep(0.01)


async def run(count: int) -> bool:
    """Both parts, on one cluster."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(
            Path(folder), routers=2, DEADLINE_GRACE_S=str(GRACE_S), SESSION_TASKS_MAX="1000", unlimited=True
        )
        with cluster:
            limits = httpx.Limits(max_connections=_AT_ONCE)
            async with (
                httpx.AsyncClient(timeout=30, limits=limits) as http,
                Redis(port=cluster.redis_port, max_connections=1_000) as aes,
            ):
                world = World(cluster, http, aes)
                killed = await killed_agents(world, count)
                print(f"agents killed: {killed}", flush=True)
                await aes.delete(QUEUE)
                raced = await races(world, count)
                print(f"races: {raced}", flush=True)
    return killed.right and raced.right


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--agent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        asyncio.run(agent(options.agent))
    return 0 if asyncio.run(run(options.tasks)) else 1


if __name__ == "__main__":
    sys.exit(main())
