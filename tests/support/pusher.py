"""The agents' side of chaos: pushes callbacks, each session's in order, until Redis has surely taken them."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, RedisError

from tests.support.accounting import callback
from tests.support.ledger import Ledger
from tests.support.traffic import Session

Client = Any  # redis-py's, whose stubs know every reply as bytes or str
Address = tuple[str, int]

_TIMEOUT_S = 2.0
_RETRY_S = 0.05
_REPLICA_ANSWERS_MS = 500
_LATER_DUPLICATE = 0.5
"""Part of the duplicates that come behind the session's next callback instead of at once."""


def connect(address: Address) -> Client:
    """A client of one connection to one server, that neither repeats commands nor follows redirections."""
    host, port = address
    return Redis(
        host=host,
        port=port,
        single_connection_client=True,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


class Place(Protocol):
    """What an agent knows of Redis.

    Attributes:
        replicas: how many of them must have a push before it counts.
    """

    @property
    def replicas(self) -> int: ...

    async def locate(self, key: str) -> Address:
        """The server that takes writes to a key.

        Raises:
            OSError: nobody knows one now.
        """


class NotConfirmed(RedisError):
    """Too few replicas have the write: a failover might lose it."""


class Wire:
    """One agent's way to whichever server has its callback list.

    Args:
        place: finds that server.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client: Client | None = None

    async def push_until_taken(self, name: str, text: str) -> None:
        """A push that failed, or of which nobody knows, is made again (and may so be there twice)."""
        while True:
            try:
                await self._push(name, text)
            except AskError as error:  # the list is being moved, and this server no longer begins it
                await self._asked(error, name, text)
                return
            except MovedError as error:
                await self.close()
                self._client = connect((error.host, error.port))
            except (RedisError, OSError):
                await self.close()
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def close(self) -> None:
        """Give the connection up."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _push(self, name: str, text: str) -> None:
        if self._client is None:
            self._client = connect(await self._place.locate(name))
        await self._client.execute_command("LPUSH", name, text)
        await self._confirm(self._client)

    async def _asked(self, error: AskError, name: str, text: str) -> None:
        """Push where the list is about to be; if that fails, as if nothing had been pushed."""
        client = connect((error.host, error.port))
        try:
            await client.execute_command("ASKING")
            await client.execute_command("LPUSH", name, text)
            await self._confirm(client)
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_S)
            await self.push_until_taken(name, text)
        finally:
            await client.aclose()

    async def _confirm(self, client: Client) -> None:
        replicas = self._place.replicas
        if replicas and await client.execute_command("WAIT", replicas, _REPLICA_ANSWERS_MS) < replicas:
            raise NotConfirmed(f"not all of {replicas} replicas have it")


class Pusher:
    """Pushes for all sessions, mixed; one worker per tenant keeps the order of its list.

    Args:
        sessions: whose callbacks they are.
        place: where each tenant's list is.
        ledger: is told when Redis has taken a callback.
        duplicates: part of the callbacks that is pushed twice.
        choose: what is random.
    """

    def __init__(
        self,
        sessions: list[Session],
        place: Place,
        ledger: Ledger,
        choose: random.Random,
        *,
        duplicates: float = 0.05,
    ) -> None:
        self._sessions = sessions
        self._place = place
        self._ledger = ledger
        self._choose = choose
        self._duplicates = duplicates
        self._queues: dict[str, asyncio.Queue[tuple[str, str]]] = {
            session.tenant_id: asyncio.Queue() for session in sessions
        }
        self._owed: dict[str, tuple[str, str]] = {}  # session -> the duplicate that follows its next callback
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Pusher:
        self._tasks = [asyncio.create_task(self._work(tenant)) for tenant in self._queues]
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self, pace: float, stop: asyncio.Event) -> None:
        """Push ``pace`` callbacks a second, each for a session chosen at random, until told to stop."""
        began, pushed = time.monotonic(), 0
        while not stop.is_set():
            due = int((time.monotonic() - began) * pace)
            for _ in range(due - pushed):
                self._next_of(self._choose.choice(self._sessions))
            pushed = due
            await asyncio.sleep(0.01)
        for session in self._sessions:
            owed = self._owed.pop(session.session_id, None)
            if owed is not None:
                self._queues[session.tenant_id].put_nowait(owed)

    def push_last(self) -> None:
        """One more callback for each session: what was doubled stands in front of it."""
        for session in self._sessions:
            self._put(session)

    async def taken(self, timeout_s: float) -> bool:
        """Wait until Redis has all that was pushed; False if that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*[queue.join() for queue in self._queues.values()])
        except TimeoutError:
            return False
        return True

    def _next_of(self, session: Session) -> None:
        owed = self._owed.pop(session.session_id, None)
        item = self._put(session)
        if owed is not None:
            self._queues[session.tenant_id].put_nowait(owed)
        if self._choose.random() < self._duplicates:
            if self._choose.random() < _LATER_DUPLICATE:
                self._owed[session.session_id] = item
            else:
                self._queues[session.tenant_id].put_nowait(item)

    def _put(self, session: Session) -> tuple[str, str]:
        task_id = f"{session.session_id}.{session.sent}"
        session.sent += 1
        item = (task_id, callback(session.tenant_id, session.session_id, task_id))
        self._queues[session.tenant_id].put_nowait(item)
        return item

    async def _work(self, tenant_id: str) -> None:
        queue, name = self._queues[tenant_id], f"orchestrator:{tenant_id}:callbacks"
        wire = Wire(self._place)
        try:
            while True:
                task_id, text = await queue.get()
                await wire.push_until_taken(name, text)
                self._ledger.take(task_id)
                queue.task_done()
        finally:
            await wire.close()
