"""A connection to one Redis server that mends itself: commands pipelined, pushes handed on.

The hot paths (a pod's subscriptions, the router's wake-up and transfers) read Redis through this instead of
redis-py, whose reading of a subscription costs 5 to 12 µs a message against 1 to 2.6 here. It speaks RESP3,
so that one connection carries commands, pub/sub messages and invalidations *in one order*: a log that is read
on the link after SUBSCRIBE was sent on it contains all that the subscription did not bring.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.redis_client import RedisTarget
from backplane.scripts import Script
from backplane.slots import Address
from backplane.wire import Argument, OnPush, OnRefused, Reply, Wire

_RECONNECT_FIRST_S = 0.02
_RECONNECT_MOST_S = 0.25
_REPLICATION = re.compile(rb"role:(\w+).*master_replid:(\w{16})", re.DOTALL)


def _ignore(_push: list[Any]) -> None:
    """For links that subscribe to nothing."""


async def _nothing() -> None:
    """For links that need no words of their own after connecting."""


class Link:
    """A named, self-mending connection.

    Args:
        target: where Redis is.
        name: shown by ``CLIENT LIST``.
        timeout_s: a connection on which nothing is heard for so long, although asked, counts as lost.
        on_push: gets every pub/sub message and invalidation; must not raise.
        on_connect: runs after every (re)connect before the link is up: subscribe again, sweep, …
        on_change: told True when the link is up, False when it was lost.
        on_failure: told why it cannot be made, once for each new reason.
        on_refused: told of a refused subscription; without it, that ends the connection.
        locate: asked for the address before every connect, where it may change (Sentinel).

    Attributes:
        lineage: which history of writes the server continues. A server that was restarted, or promoted in
            another's place, has a new one: it may lack what was written last.
    """

    def __init__(
        self,
        target: RedisTarget,
        name: str,
        *,
        timeout_s: float,
        on_push: OnPush = _ignore,
        on_connect: Callable[[], Awaitable[None]] = _nothing,
        on_change: Callable[[bool], None] = lambda _up: None,
        on_failure: Callable[[str], None] = lambda _reason: None,
        on_refused: OnRefused | None = None,
        locate: Callable[[], Awaitable[Address]] | None = None,
    ) -> None:
        self._target = target
        self._name = name
        self._timeout_s = timeout_s
        self._on_push = on_push
        self._on_connect = on_connect
        self._on_change = on_change
        self._on_failure = on_failure
        self._on_refused = on_refused
        self._locate = locate
        self._told = ""
        self._wire: Wire | None = None
        self._up = asyncio.Event()
        self.address = Address(target.host, target.port)
        self.lineage = ""
        self.last_error = "not connected yet"
        self.connects = 0

    @property
    def up(self) -> bool:
        """Whether commands can be sent now."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return when the link is up."""
        await asyncio.sleep(0)  # or a caller that has just met a loss might spin on it before it is noticed
        await self._up.wait()

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command at once and return the future of its reply.

        Raises:
            RedisUnavailable: not connected (here), connection lost before the reply (from the future).
            RedisRefused: Redis answered with an error (from the future).
        """
        if self._wire is None:
            raise RedisUnavailable(f"not connected to Redis: {self.last_error}")
        return self._wire.call(args)

    def tell(self, *args: Argument) -> None:
        """Send a command whose only answers are pushes; silently nothing while the link is down.

        Subscriptions are made again by ``on_connect``, so nothing is lost by that.
        """
        if self._wire is not None and not self._wire.lost.is_set():
            self._wire.tell(args)

    def send_script(self, script: Script, keys: list[str], args: list[Argument]) -> asyncio.Future[Reply]:
        """Run a script by its digest, at once; a server that does not know it answers ``NOSCRIPT``.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """
        return self.call("EVALSHA", script.sha1, len(keys), *keys, *self._script_args(script, args))

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        """Run a script by its digest; the server is given its text when it does not know it.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """
        try:
            return await self.send_script(script, keys, args)
        except RedisRefused as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.call("EVAL", script.text, len(keys), *keys, *self._script_args(script, args))

    def _script_args(self, script: Script, args: list[Argument]) -> list[Argument]:
        return [self.lineage, *args] if script.lineage else args

    def abort(self, reason: str) -> None:
        """Drop the connection and make a new one."""
        if self._wire is not None:
            self._wire.abort(reason)

    def rest(self, delay_s: float) -> None:
        """Read nothing for ``delay_s``: what is pushed meanwhile is then read in one go."""
        if self._wire is not None:
            self._wire.rest(delay_s)

    async def run(self) -> None:
        """Connect, stay connected, connect again; returns only by cancellation."""
        delay_s = _RECONNECT_FIRST_S
        while True:
            try:
                await self._serve()
                delay_s = _RECONNECT_FIRST_S  # it was up, so try again at once
            except (OSError, RedisUnavailable, TimeoutError) as error:
                self._fail(str(error) or type(error).__name__)
            except asyncio.CancelledError:
                self._drop(tell=False)  # the process stops; nothing was lost
                raise
            self._drop()
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, _RECONNECT_MOST_S)

    async def _serve(self) -> None:
        """One connection's life, from connecting to its loss."""
        async with asyncio.timeout(self._timeout_s):
            if self._locate is not None:
                self.address = await self._locate()
            self._wire = await self._connect()
            await self._greet()
            await self._on_connect()
        wire = self._wire
        if wire.lost.is_set():
            raise RedisUnavailable("connection to Redis lost while it was being set up")
        self.connects += 1
        self._told = ""
        self._up.set()
        self._on_change(True)
        while not wire.lost.is_set():
            wire.ask()
            try:
                async with asyncio.timeout(self._timeout_s / 4):
                    await wire.lost.wait()
            except TimeoutError:
                if wire.overdue(self._timeout_s):
                    wire.abort(f"Redis said nothing for {self._timeout_s} s")
        self.last_error = f"connection to Redis lost: {wire.reason}"

    def _fail(self, reason: str) -> None:
        self.last_error = reason
        if reason != self._told:
            self._told = reason
            self._on_failure(reason)

    async def _connect(self) -> Wire:
        return await open_wire(self._target, self.address, self._on_push, self._on_refused)

    async def _greet(self) -> None:
        target = self._target
        greeting = [self.call(*hello(target.username, target.password, self._name))]
        if target.database:
            greeting.append(self.call("SELECT", target.database))
        greeting.append(self.call("PING"))  # while the data set is loading, HELLO works and this is refused
        greeting.append(self.call("INFO", "replication"))
        # All of it in one go: what others send from now on must not reach Redis before SELECT.
        replies = await asyncio.gather(*greeting)
        told = _REPLICATION.search(replies[-1])
        if told is None:
            raise RedisUnavailable("INFO replication does not tell the server's role and history")
        if told[1] != b"master":
            raise RedisUnavailable(f"{self.address} is a replica, and only primaries take writes")
        self.lineage = told[2].decode()

    def _drop(self, *, tell: bool = True) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort("the link was stopped")
        if self._up.is_set():
            self._up.clear()
            if tell:
                self._on_change(False)


def hello(username: str | None, password: str | None, name: str) -> tuple[Argument, ...]:
    """The first command of a connection."""
    login = ("AUTH", username or "default", password) if password else ()
    return ("HELLO", 3, *login, "SETNAME", name)


async def open_wire(
    target: RedisTarget, address: Address, on_push: OnPush = _ignore, on_refused: OnRefused | None = None
) -> Wire:
    """Connect to one server.

    Raises:
        OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    if target.unix_path is not None:
        _, wire = await loop.create_unix_connection(lambda: Wire(on_push, on_refused), target.unix_path)
    else:
        _, wire = await loop.create_connection(
            lambda: Wire(on_push, on_refused), address.host, address.port, ssl=target.tls
        )
    return wire
