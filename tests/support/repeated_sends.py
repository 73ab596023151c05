"""Counts the actions that come of messages which are sent again and again under one key.

    python -m tests.support.repeated_sends [--rounds 100] [--copies 50] [--kills 20]

In each round so many copies of one message go to two pods at once. In the last rounds one of the pods is
killed meanwhile, and who got no answer sends again. Prints a line for each part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from tests.support.processes import Cluster, wait_for

QUEUE = "nooble4:dev:agent_execution_service:actions:free"
_TRIES = 200
_PAUSE_S = 0.05


@dataclass
class Repeated:
    """What came of the rounds.

    Attributes:
        sends: answered with 200.
        retried: sends that got no answer, or one to try again later.
        tasks: that were told, of all rounds.
        first: answers that were no ``duplicate``.
        actions: in the queue, by how many a round has.
        kills: of pods.
    """

    rounds: int = 0
    sends: int = 0
    retried: int = 0
    tasks: int = 0
    first: int = 0
    actions: Counter[int] = field(default_factory=Counter)
    kills: int = 0

    @property
    def right(self) -> bool:
        """One task and one action a round; with kills its first answer may have been lost."""
        first = self.first == self.rounds or (self.kills > 0 and self.first <= self.rounds)
        return self.tasks == self.rounds and first and dict(self.actions) == {1: self.rounds}

    def __str__(self) -> str:
        actions = sum(number * rounds for number, rounds in self.actions.items())
        return (
            f"rounds={self.rounds} sends={self.sends} retried={self.retried} tasks={self.tasks} "
            f"first={self.first} actions={actions} kills={self.kills}"
        )


async def _send(http: httpx.AsyncClient, cluster: Cluster, number: int, key: str, told: Repeated) -> Any:
    """Send until it is answered: the first time to the pod whose turn it is, then to any."""
    headers = {
        "X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1", "X-Session-ID": "repeated",
        "Idempotency-Key": key,
    }  # fmt: skip
    pod = cluster.pods[number % len(cluster.pods)]
    for _ in range(_TRIES):
        try:
            answer = await http.post(f"{pod.url}/api/chat/send", json={"message": key}, headers=headers)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return answer.json()
        assert answer is None or answer.status_code == 503, answer.text
        told.retried += 1
        pod = random.choice(cluster.pods)
        await asyncio.sleep(_PAUSE_S)
    raise TimeoutError(f"no answer to {key}")


async def repeat(cluster: Cluster, rounds: int, copies: int, *, kill: bool, seed: int = 0) -> Repeated:
    """Send so many copies of one message a round; with ``kill``, a pod dies in each."""
    told, choose = Repeated(), random.Random(seed)
    limits = httpx.Limits(max_connections=copies)
    async with httpx.AsyncClient(limits=limits, timeout=10) as http, Redis(port=cluster.redis_port) as aes:
        for number in range(rounds):
            key = f"{'killed' if kill else 'round'}-{number}"
            sends = [asyncio.create_task(_send(http, cluster, n, key, told)) for n in range(copies)]
            if kill:
                await asyncio.sleep(choose.uniform(0, 0.04))
                victim = choose.choice(cluster.pods)
                victim.kill()
                victim.start()
                told.kills += 1
            answers = await asyncio.gather(*sends)
            told.rounds += 1
            told.sends += len(answers)
            told.tasks += len({answer["task_id"] for answer in answers})
            told.first += sum(not answer["duplicate"] for answer in answers)
            taken: Any = await aes.lpop(QUEUE, 1_000_000) or []
            assert all(json.loads(action)["message"] == key for action in taken)
            told.actions[len(taken)] += 1
            await asyncio.to_thread(
                wait_for, lambda: all(pod.ready() for pod in cluster.pods), "pods are back"
            )
    return told


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    settings = {"SESSION_TASKS_MAX": "1000", "TASK_TIMEOUT_S": "3600,3600,3600,3600"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), pods=2, routers=1, unlimited=True, **settings) as cluster,
    ):
        alive = asyncio.run(repeat(cluster, options.rounds, options.copies, kill=False))
        print("all alive:", alive, flush=True)
        killed = asyncio.run(repeat(cluster, options.kills, options.copies, kill=True))
        print("pods killed:", killed)
    return 0 if alive.right and killed.right else 1


if __name__ == "__main__":
    sys.exit(main())
