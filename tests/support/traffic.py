"""Clients that behave as docs/clients.md asks of good ones, and the accounting of what they end up with."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec

from tests.support.lean_client import LeanClient, OnText
from tests.support.ledger import Ledger

SILENT_HEARTBEATS = 2
_CONNECT_TIMEOUT_S = 1.0
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 0.5
_SWEEP_S = 0.1
_RESTARTING = (1001, 1012)
_UNTOLD_MOST_S = 1.0  # wait before coming back, if the pod did not tell one
_OPENING_AT_ONCE = 100


class _Metadata(msgspec.Struct, frozen=True):
    seq: int | None = None
    epoch: str | None = None


class _Seen(msgspec.Struct):
    """What a client here reads of a message."""

    type: str
    task_id: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    metadata: _Metadata = _Metadata()


_read = msgspec.json.Decoder(_Seen).decode


class _Socket(LeanClient):
    """A socket that knows when anything, a ping too, was last heard on it."""

    def __init__(self, path: str, on_text: OnText) -> None:
        super().__init__(path, on_text)
        self.heard_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        super().data_received(data)


@dataclass(slots=True, eq=False)
class Session:
    """One session's client, and what it ends up with.

    It reconnects with its cursor, to the next pod; leaves a socket on which nothing was heard for two
    heartbeats; moves when asked to; and on a ``reset`` replaces what it has from ``oldest`` on.
    """

    tenant_id: str
    session_id: str
    ports: list[int]
    ledger: Ledger
    choose: random.Random
    sent: int = 0
    """How many callbacks were pushed for it; counted by who pushes them."""
    received: list[tuple[int, str]] = field(default_factory=list)
    """(seq, task id) of what it has; a reset takes some of it away."""
    have: set[str] = field(default_factory=set)
    epoch: str = ""
    seq: int = 0
    outages_s: list[float] = field(default_factory=list)
    resets: int = 0
    gaps: list[str] = field(default_factory=list)
    """Where a message's seq did not follow, although no reset was said."""
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    _socket: _Socket | None = None
    _ports: list[int] = field(default_factory=list)
    _gone_at: float = 0.0
    _not_before: float = 0.0
    _move_at: float = math.inf

    async def run(self, opening: asyncio.Semaphore) -> None:
        """Hold a socket until cancelled."""
        async with opening:
            socket = await self._open()
        while True:
            code = await asyncio.shield(socket.lost)  # whoever closes the socket waits for it too
            self._gone_at = self._gone_at or time.monotonic()
            if code in _RESTARTING and not self._not_before:
                self._not_before = self._gone_at + self.choose.uniform(0.0, _UNTOLD_MOST_S)
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            socket = await self._open()

    async def close(self) -> None:
        """Cut the socket, if there is one; a client that has none at the end had an outage."""
        if self._gone_at:
            self.outages_s.append(time.monotonic() - self._gone_at)
        self.drop()
        if self._socket is not None:
            await self._socket.lost

    def check(self, now: float, silence_s: float) -> None:
        """Leave a socket that is silent, or that the pod asked to leave by now."""
        socket = self._socket
        if socket is None or socket.lost.done():
            return
        if now - socket.heard_at > silence_s or now >= self._move_at:
            socket.drop()

    def drop(self) -> None:
        """Lose the socket, if there is one, as a moving phone does."""
        if self._socket is not None:
            self._socket.drop()

    async def _open(self) -> _Socket:
        delay_s = _RETRY_FIRST_S
        while True:
            port = self._next_port()
            cursor = f"{self.epoch}:{self.seq}" if self.epoch else ""
            path = f"/ws/{self.session_id}?tenant_id={self.tenant_id}&tenant_tier=free&cursor={cursor}"
            self._not_before, self._move_at = 0.0, math.inf
            socket = await _connect(port, path, self._on_text)
            if socket is not None:
                self._socket = socket
                return socket
            await asyncio.sleep(delay_s * self.choose.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, _RETRY_MOST_S)

    def _next_port(self) -> int:
        """The pods in turn, in an order of its own: the last one has closed, refused or gone silent."""
        if not self._ports:
            self._ports = self.choose.sample(self.ports, len(self.ports))
        self._ports.append(self._ports.pop(0))
        return self._ports[-1]

    def _on_text(self, text: bytes) -> None:
        message = _read(text)
        if message.type == "connection_ack":
            self._on_ack(json.loads(bytes(message.data)))
        elif message.type == "reconnect":
            after_s = json.loads(bytes(message.data))["after_ms"] / 1000
            # The pod closes the socket now or later; until the time it told, the client does not come back.
            self._not_before = self._move_at = time.monotonic() + after_s
        elif message.metadata.seq is not None and message.metadata.epoch and message.task_id is not None:
            self._on_logged(message.metadata.epoch, message.metadata.seq, message.task_id)

    def _on_ack(self, data: dict[str, object]) -> None:
        resume = data["resume"]
        assert isinstance(resume, dict)
        if resume["status"] == "reset":
            self.resets += 1
            self.received = [kept for kept in self.received if kept[0] < resume["oldest"]]
            self.have = {task_id for _, task_id in self.received}
        if resume["status"] == "reset" or not self.epoch:
            self.epoch, _, seq = str(data["cursor"]).rpartition(":")
            self.seq = int(seq)
        if self._gone_at:
            self.outages_s.append(time.monotonic() - self._gone_at)
            self._gone_at = 0.0
        self.opened.set()

    def _on_logged(self, epoch: str, seq: int, task_id: str) -> None:
        # A new epoch alone is none: what follows in it may follow without a break.
        if seq != self.seq + 1:
            self.gaps.append(f"{self.session_id} had {self.epoch}:{self.seq}, got {epoch}:{seq}")
        self.epoch, self.seq = epoch, seq
        self.received.append((seq, task_id))
        self.have.add(task_id)
        self.ledger.arrive(task_id)


async def _connect(port: int, path: str, on_text: OnText) -> _Socket | None:
    """Open a socket; None if nobody answers in time, or the answer is no."""
    loop = asyncio.get_running_loop()
    client = _Socket(path, on_text)
    opened = False
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await loop.create_connection(lambda: client, "127.0.0.1", port)
            opened = await client.opened
    except OSError:  # a TimeoutError too
        pass
    finally:
        if not opened:
            client.drop()
    return client if opened else None


class Clients:
    """All sessions' clients, running; an async context manager.

    Args:
        sessions: whose they are.
        heartbeat_s: how often the pods ping.
        drops_a_s: sockets lost by accident in a second; it also brings clients back to pods that were away.
        choose: whose sockets.
    """

    def __init__(
        self, sessions: list[Session], heartbeat_s: float, drops_a_s: float, choose: random.Random
    ) -> None:
        self._sessions = sessions
        self._silence_s = heartbeat_s * SILENT_HEARTBEATS
        self._drops_a_s = drops_a_s
        self._choose = choose
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Clients:
        opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._tasks = [asyncio.create_task(session.run(opening)) for session in self._sessions]
        self._tasks.append(asyncio.create_task(self._sweep()))
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*[session.close() for session in self._sessions])

    async def opened(self, timeout_s: float) -> None:
        """Return when every client has had its first socket, and so has a cursor.

        Raises:
            TimeoutError: not all have in time.
        """
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*[session.opened.wait() for session in self._sessions])

    async def complete(self, timeout_s: float) -> bool:
        """Wait until every client has all that was pushed for it; False if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while any(len(session.have) < session.sent for session in self._sessions):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _sweep(self) -> None:
        """One task looks after all sockets: a timer each would cost more than the messages do."""
        drops = 0.0
        while True:
            began = time.monotonic()
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            if now - began < 3 * _SWEEP_S:  # else it was this process that did not listen
                for session in self._sessions:
                    session.check(now, self._silence_s)
            drops += self._drops_a_s * _SWEEP_S
            while drops >= 1:
                drops -= 1
                self._choose.choice(self._sessions).drop()


class Account(NamedTuple):
    """What came, compared with what was sent.

    Attributes:
        longest_outage_s: the longest time that a client had no socket or that a message was under way.
    """

    sent: int
    delivered: int
    lost: int
    doubled: int
    out_of_order: int
    longest_outage_s: float

    def __str__(self) -> str:
        numbers = " ".join(f"{name}={value}" for name, value in list(self._asdict().items())[:-1])
        return f"{numbers} longest_outage_s={self.longest_outage_s:.2f}"

    @property
    def clean(self) -> bool:
        """Whether every message came exactly once and in order."""
        return self.delivered == self.sent and not (self.lost or self.doubled or self.out_of_order)


def missing(sessions: Iterable[Session]) -> list[str]:
    """The task ids that were pushed and that the clients do not have in the end."""
    wanted = ((s, f"{s.session_id}.{number}") for s in sessions for number in range(s.sent))
    return [task_id for session, task_id in wanted if task_id not in session.have]


def account(sessions: Iterable[Session], ledger: Ledger) -> Account:
    """Compare what the clients have in the end with what was pushed for them."""
    sent = delivered = lost = doubled = disordered = 0
    outages_s = [0.0, *ledger.delays()]
    for session in sessions:
        task_ids = [task_id for _, task_id in session.received]
        numbers = [int(task_id.rpartition(".")[2]) for task_id in dict.fromkeys(task_ids)]
        sent += session.sent
        delivered += len(task_ids)
        lost += len(set(range(session.sent)) - set(numbers))
        doubled += len(task_ids) - len(numbers)
        disordered += sum(later < earlier for earlier, later in pairwise(numbers))
        outages_s += session.outages_s
    return Account(sent, delivered, lost, doubled, disordered, max(outages_s))
