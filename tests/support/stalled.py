"""A long answer, one client that stops reading it, and another one of the same session that goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from tests.support.lean_client import connect
from tests.support.processes import Cluster

_TENANT = "acme"
_EVERY_S = 0.01
_RCVBUF_BYTES = 4096
_WAIT_S = 60.0


@dataclass
class Told:
    """What became of it.

    Attributes:
        grew_kib: resident memory of the pod at its highest while the client did not read, above that before.
        before_s: times between the other client's pieces while everybody read, sorted.
        during_s: the same while one did not.
        pieces: what the stalled client got from when it read again.
        piece_bytes: the same in bytes of JSON.
        last_chars: of the last of these pieces; those before it stood in the buffers of kernel and transport.
        caught_up_s: from when it read again until it had everything.
    """

    grew_kib: int = 0
    before_s: list[float] = field(default_factory=list)
    during_s: list[float] = field(default_factory=list)
    pieces: int = 0
    piece_bytes: int = 0
    last_chars: int = 0
    caught_up_s: float = 0.0


def quantile(sorted_values: list[float], share: float) -> float:
    """The value below which so many are."""
    return sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)]


class Answer:
    """What one client puts together of one answer.

    Raises:
        AssertionError: a piece does not follow the one before.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.chars = 0
        self.at: list[float] = []
        self.sizes: list[int] = []
        self.bytes = 0
        self.response: str | None = None

    def take(self, raw: bytes) -> None:
        """A message."""
        message = json.loads(raw)
        data = message["data"]
        if message["type"] == "agent_response":
            self.response = data["response"]
        if message["type"] != "agent_chunk":
            return
        self.at.append(time.monotonic())
        self.sizes.append(len(data["delta"]))
        self.bytes += len(raw)
        assert data["offset"] == self.chars, "a gap, or something twice"
        self._pieces.append(data["delta"])
        self.chars += len(data["delta"])

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    @property
    def gaps_s(self) -> list[float]:
        """Between its pieces, sorted."""
        return sorted(later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False))


class Sleeper:
    """A client that reads when it is told to, with a small buffer in the kernel."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, port: int, path: str) -> None:
        """Connect, and read the first message."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RCVBUF_BYTES)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        self._reader, self._writer = await asyncio.open_connection(sock=plain, limit=_RCVBUF_BYTES)
        self._writer.write(
            f"GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await self._reader.readuntil(b"\r\n\r\n")
        await self.read()

    async def read(self) -> None:
        """One frame."""
        assert self._reader is not None
        head = await self._reader.readexactly(2)
        length = head[1]
        if length >= 126:
            length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8), "big")
        payload = await self._reader.readexactly(length)
        if head[0] & 0x0F == 1:
            self.answer.take(payload)

    def close(self) -> None:
        """At once."""
        if self._writer is not None:
            self._writer.transport.abort()


class Speaker:
    """An agent.

    Args:
        aes: Redis.
        rate: tokens a second.
        token_chars: of each.
    """

    def __init__(self, aes: Any, session_id: str, rate: float, token_chars: int) -> None:
        self._aes, self._rate = aes, rate
        self._base = {"tenant_id": _TENANT, "session_id": session_id, "task_id": str(uuid4())}
        self._token_chars = token_chars
        self._tokens: list[str] = []
        self.chars = 0

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self._tokens)

    def _callback(self, **more: Any) -> str:
        return json.dumps({**self._base, "action_id": str(uuid4()), **more})

    async def speak(self, tokens: int) -> None:
        """So many tokens."""
        began, said = time.monotonic(), 0
        while said < tokens:
            due = min(int((time.monotonic() - began) * self._rate) + 1, tokens) - said
            callbacks = []
            for number in range(said, said + due):
                token = f"{number} \u2014 ".ljust(self._token_chars, "w")
                data = {"delta": token, "offset": self.chars}
                callbacks.append(self._callback(action_type="execution.chunk", data=data))
                self._tokens.append(token)
                self.chars += len(token)
            if callbacks:
                await self._aes.lpush(f"orchestrator:{_TENANT}:callbacks", *callbacks)
            said += due
            await asyncio.sleep(_EVERY_S)

    async def finish(self) -> None:
        """The end of the answer."""
        last = self._callback(
            action_type="execution.callback", status="completed", result={"response": "whole"}
        )
        await self._aes.lpush(f"orchestrator:{_TENANT}:callbacks", last)


async def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.005)


async def stall(cluster: Cluster, tokens: int, rate: float, token_chars: int, before: int) -> Told:
    """An answer of ``before`` tokens that both read, then one of ``tokens`` during which one does not.

    Raises:
        AssertionError: somebody has something else than the agent said.
    """
    told, pod = Told(), cluster.pods[0]
    path = f"/ws/stalled?tenant_id={_TENANT}&tenant_tier=free&stream=1"
    answers = [Answer()]

    def take(raw: bytes) -> None:
        answers[-1].take(raw)

    other = await connect(pod.port, path, take)
    assert other is not None
    sleeper = Sleeper()
    async with Redis(port=cluster.redis_port) as aes:
        try:
            await sleeper.open(pod.port, path)
            warm = Speaker(aes, "stalled", rate, token_chars)
            reading = asyncio.create_task(_read_on(sleeper))
            await warm.speak(before)
            await warm.finish()
            await _until(
                lambda: answers[0].response and sleeper.answer.response, "both have the first answer"
            )
            assert answers[0].text == sleeper.answer.text == warm.text
            told.before_s = answers[0].gaps_s
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

            answers.append(Answer())
            sleeper.answer = Answer()
            speaker = Speaker(aes, "stalled", rate, token_chars)
            at_first = pod.rss_kib()
            speaking = asyncio.create_task(speaker.speak(tokens))
            while not speaking.done():
                told.grew_kib = max(told.grew_kib, pod.rss_kib() - at_first)
                await asyncio.sleep(0.05)
            await speaking
            await _until(lambda: answers[1].chars == speaker.chars, "the other has everything")
            told.grew_kib = max(told.grew_kib, pod.rss_kib() - at_first)
            told.during_s = answers[1].gaps_s

            began = time.monotonic()
            async with asyncio.timeout(_WAIT_S):
                while sleeper.answer.chars < speaker.chars:
                    await sleeper.read()
            assert sleeper.answer.text == answers[1].text == speaker.text
            told.caught_up_s = time.monotonic() - began
            told.pieces, told.piece_bytes = len(sleeper.answer.sizes), sleeper.answer.bytes
            told.last_chars = sleeper.answer.sizes[-1]
            await speaker.finish()
            async with asyncio.timeout(_WAIT_S):
                while sleeper.answer.response is None:
                    await sleeper.read()
            await _until(lambda: answers[1].response == "whole", "the other has the end")
        finally:
            sleeper.close()
            other.drop()
    return told


async def _read_on(sleeper: Sleeper) -> None:
    while True:
        await sleeper.read()
