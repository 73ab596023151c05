"""Streams many answers at once while clients are dropped and processes killed, and compares every text.

    python -m tests.support.streaming [--answers 200] [--tokens 2000] [--rate 40] [--drops 5] [--kills 3]
        [--have 1.0]

A client puts the pieces of its answer together, comes back after each drop, on any pod, says what it has
(`--have`: with this probability; else it is sent the whole again, once), and is right if at
the end of the stream it has what the agent said, character by character. Prints the accounting and fails
unless all are right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
import uvloop
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.support.processes import Cluster

_TENANTS = 10
_JOINING_S = 0.5  # for which a client may not have been told yet what was said before it came
_WORDS = (
    "a ",
    "token",
    " and",
    "\n",
    "wörld ",
    "\u4f60\u597d",
    '"quoted" ',
    "\\",
    "\U0001f680",
    " of",
    " text. ",
)


@dataclass
class Answer:
    """One agent's answer, and what its client has of it."""

    tenant_id: str
    session_id: str
    tokens: list[str]
    task_id: str = field(default_factory=lambda: str(uuid4()))
    pushed: int = 0
    chars: int = 0
    text: str = ""
    response: str | None = None
    cursor: str = ""
    drops: int = 0
    snapshots: int = 0
    pieces: int = 0
    wrong_offsets: int = 0
    piece_bytes: int = 0
    wire_bytes: int = 0
    streamed: str | None = None  # what was put together when the whole came
    joined_at: float = 0.0  # when its client was let in the last time
    over_at: float = 0.0  # when its end was pushed

    @property
    def source(self) -> str:
        return "".join(self.tokens)

    def next_callback(self) -> str:
        token = self.tokens[self.pushed]
        data = {"delta": token, "offset": self.chars}
        self.pushed += 1
        self.chars += len(token)
        return self._callback(action_type="execution.chunk", data=data)

    def last_callback(self) -> str:
        result = {"response": self.source}
        return self._callback(action_type="execution.callback", status="completed", result=result)

    def _callback(self, **more: Any) -> str:
        base = {"tenant_id": self.tenant_id, "session_id": self.session_id, "task_id": self.task_id}
        return json.dumps({**base, "action_id": str(uuid4()), **more})

    def take(self, raw: str) -> None:
        self.wire_bytes += len(raw.encode())
        message = json.loads(raw)
        metadata = message["metadata"]
        if message["type"] == "connection_ack":
            self.joined_at = time.monotonic()
        if "seq" in metadata:
            self.cursor = f"{metadata['epoch']}:{metadata['seq']}"
        if message["type"] == "agent_response":
            self.response, self.streamed = message["data"]["response"], self.text
        if message["type"] != "agent_chunk":
            return
        data = message["data"]
        if data.get("snapshot"):
            self.snapshots += 1
            self.text = ""
        self.pieces += 1
        self.piece_bytes += len(data["delta"].encode())
        if data["offset"] != len(self.text):
            self.wrong_offsets += 1
        self.text = self.text[: data["offset"]] + data["delta"]


async def read(
    cluster: Cluster, answer: Answer, drops: int, length_s: float, have: float, choose: random.Random
) -> None:
    """A client: reads, is dropped, comes back, and perhaps says what it has."""
    began = time.monotonic()
    moments = sorted(choose.uniform(0.1, 0.95) * length_s for _ in range(drops))
    while answer.response is None:
        pod = choose.choice(cluster.pods)
        query = f"tenant_id={answer.tenant_id}&tenant_tier=free&stream=1"
        query += f"&cursor={answer.cursor}" if answer.cursor else ""
        if answer.text and choose.random() < have:
            query += f"&have={answer.task_id}:1:{len(answer.text)}:0"
        url = f"ws://127.0.0.1:{pod.port}/ws/{answer.session_id}?{query}"
        try:
            async with connect(
                url, compression=None, max_size=None, ping_interval=None, open_timeout=3
            ) as socket:
                await _listen(socket, answer, moments, began)
        except (OSError, WebSocketException, TimeoutError):
            await asyncio.sleep(choose.uniform(0.05, 0.3))


async def _listen(socket: ClientConnection, answer: Answer, moments: list[float], began: float) -> None:
    while answer.response is None:
        left = moments[0] - (time.monotonic() - began) if moments else 30.0
        if left <= 0:
            moments.pop(0)
            answer.drops += 1
            socket.transport.abort()
            return
        try:
            async with asyncio.timeout(left):
                raw = await socket.recv()
        except TimeoutError:
            if not moments:
                raise
            continue
        assert isinstance(raw, str)
        answer.take(raw)


async def speak(aes: Any, answers: list[Answer], rate: float) -> float:
    """The agents: each says a token every 1/rate s; returns how long that took."""
    began = time.monotonic()
    for number in range(max(len(answer.tokens) for answer in answers)):
        pipeline = aes.pipeline(transaction=False)
        for answer in answers:
            pipeline.lpush(f"orchestrator:{answer.tenant_id}:callbacks", answer.next_callback())
        await pipeline.execute()
        await asyncio.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
    for answer in answers:
        answer.over_at = time.monotonic()
        await aes.lpush(f"orchestrator:{answer.tenant_id}:callbacks", answer.last_callback())
    return time.monotonic() - began


async def kill(cluster: Cluster, times: int, length_s: float, choose: random.Random) -> int:
    """Pods and routers, in turn, with SIGKILL; each is started again."""
    victims: list[Callable[[], Awaitable[None]]] = []

    def killer(process: Any) -> Callable[[], Awaitable[None]]:
        async def strike() -> None:
            await asyncio.to_thread(process.kill)
            await asyncio.sleep(0.3)
            process.start()

        return strike

    for process in (*cluster.pods, *cluster.routers):
        victims += [killer(process)] * times
    choose.shuffle(victims)
    for strike in victims:
        await asyncio.sleep(length_s * 0.9 / len(victims))
        await strike()
    return len(victims)


def was_away(answer: Answer) -> bool:
    """Whether the client was not there when the answer ended: then the end alone has the rest for it."""
    return answer.joined_at > answer.over_at - _JOINING_S and answer.source.startswith(answer.streamed or "")


def wrong(answers: list[Answer]) -> list[Answer]:
    """Those whose client has something else than the agent said."""
    return [
        one
        for one in answers
        if one.response != one.source
        or one.wrong_offsets
        or (one.streamed != one.source and not was_away(one))
    ]


async def run(count: int, tokens: int, rate: float, drops: int, kills: int, seed: int, have: float) -> bool:
    """Everything, once."""
    choose = random.Random(seed)
    answers = [
        Answer(f"t-{n % _TENANTS}", f"s-{n}", [choose.choice(_WORDS) for _ in range(tokens)])
        for n in range(count)
    ]
    length_s = tokens / rate
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder), pods=3, routers=2, unlimited=True) as cluster,
        redis.Redis(port=cluster.redis_port) as plain,
    ):
        before = plain.info("commandstats")
        async with Redis(port=cluster.redis_port) as aes:
            readers = [
                asyncio.create_task(read(cluster, answer, drops, length_s, have, random.Random(seed + n)))
                for n, answer in enumerate(answers)
            ]
            await asyncio.sleep(1.0)
            cpu = _cpu_s(cluster)
            killing = asyncio.create_task(kill(cluster, kills, length_s, choose))
            took = await speak(aes, answers, rate)
            cpu = _cpu_s(cluster) - cpu
            killed = await killing
            async with asyncio.timeout(60):
                await asyncio.gather(*readers)
        after = plain.info("commandstats")
        left = len(plain.keys("*:text")) + len(plain.keys("*:streams"))
    text = sum(len(answer.source.encode()) for answer in answers)
    pieces = sum(answer.piece_bytes for answer in answers)
    writes = _calls(after, before, "append") + _calls(after, before, "hset")
    print(
        f"answers={count} tokens={tokens} seconds={took:.1f} drops={sum(a.drops for a in answers)} "
        f"kills={killed} snapshots={sum(a.snapshots for a in answers)} wrong={len(wrong(answers))} "
        f"offsets_wrong={sum(a.wrong_offsets for a in answers)} "
        f"away_at_the_end={sum(a.streamed != a.source for a in answers)} left_in_redis={left}\n"
        f"text_bytes={text} piece_bytes={pieces} ({pieces / text:.2f}x) "
        f"wire_bytes={sum(a.wire_bytes for a in answers)} frames={sum(a.pieces for a in answers)} "
        f"redis_writes_per_token={writes / (count * tokens):.2f}"
        + ("" if kills else f" cpu_us_per_token={cpu / (count * tokens) * 1e6:.0f}")
    )
    return not wrong(answers) and not left


def _cpu_s(cluster: Cluster) -> float:
    return sum(process.cpu_s() for process in (*cluster.pods, *cluster.routers))


def _calls(after: Any, before: Any, name: str) -> int:
    return int(after.get(f"cmdstat_{name}", {}).get("calls", 0)) - int(
        before.get(f"cmdstat_{name}", {}).get("calls", 0)
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=40.0, help="tokens a second of each answer")
    parser.add_argument("--drops", type=int, default=5, help="of each client")
    parser.add_argument("--kills", type=int, default=3, help="of each pod and router")
    parser.add_argument("--have", type=float, default=1.0, help="share of returns that say what they have")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed={options.seed}")
    work = run(
        options.answers,
        options.tokens,
        options.rate,
        options.drops,
        options.kills,
        options.seed,
        options.have,
    )
    return 0 if uvloop.run(work) else 1


if __name__ == "__main__":
    sys.exit(main())
