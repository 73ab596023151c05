"""A connection to Redis that mends itself: commands pipelined, pushes handed on.

The hot paths (a pod's subscriptions, the router's wake-up and transfers) read Redis through this instead of
redis-py, whose reading of a subscription costs 5 to 12 µs a message against 1 to 2.6 here. It speaks RESP3,
so that one connection carries commands, pub/sub messages and invalidations *in one order*: a log that is read
on the link after SUBSCRIBE was sent on it contains all that the subscription did not bring.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hiredis import PushNotification, Reader, ReplyError, pack_command

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.redis_client import RedisTarget
from backplane.scripts import Script

Reply = Any
Argument = str | bytes | int
OnPush = Callable[[list[Any]], None]

_MORE = object()  # what the reader returns when a reply is not complete yet
_CONFIRMATIONS = frozenset({b"subscribe", b"unsubscribe"})
_MAX_IN_FLIGHT = 20_000
_RECONNECT_FIRST_S = 0.02
_RECONNECT_MOST_S = 0.25


def _ignore(_push: list[Any]) -> None:
    """For links that subscribe to nothing."""


async def _nothing() -> None:
    """For links that need no words of their own after connecting."""


class _Told:
    """Stands in line for a command that is answered by one push for each of its channels."""

    def __init__(self, channels: int) -> None:
        self.left = channels


class _Wire(asyncio.Protocol):
    """One TCP connection: bytes to replies and pushes, replies to those who wait in line."""

    def __init__(self, on_push: OnPush) -> None:
        self._reader = Reader(notEnoughData=_MORE)
        self._on_push = on_push
        self._waiting: deque[asyncio.Future[Reply] | _Told] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.heard_at = self._loop.time()
        self.lost = asyncio.Event()
        self.reason = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        while (reply := reader.gets()) is not _MORE:
            if type(reply) is PushNotification:
                if reply[0] in _CONFIRMATIONS:
                    self._confirm()
                self._on_push(reply)
                continue
            future = waiting.popleft()
            if isinstance(future, _Told):  # a refused subscription must not pass for somebody's reply
                self.abort(str(reply))
                return
            if future.done():  # whoever waited was cancelled; the reply still takes its place in line
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(RedisRefused(str(reply)))
            else:
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.reason = self.reason or str(exc or "closed by the server")
        self.lost.set()
        error = RedisUnavailable(f"connection to Redis lost: {self.reason}")
        while self._waiting:
            future = self._waiting.popleft()
            if not isinstance(future, _Told) and not future.done():
                future.set_exception(error)
                future.exception()  # a caller that went away must not make asyncio complain

    def _confirm(self) -> None:
        told = self._waiting[0] if self._waiting else None
        if isinstance(told, _Told):
            told.left -= 1
            if told.left == 0:
                self._waiting.popleft()

    def call(self, args: tuple[Argument, ...]) -> asyncio.Future[Reply]:
        """Send one command; its reply comes in the order of sending."""
        if self._transport is None:
            raise RedisUnavailable("not connected to Redis")
        if len(self._waiting) >= _MAX_IN_FLIGHT:
            raise RedisUnavailable(f"{_MAX_IN_FLIGHT} commands wait for Redis already")
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._transport.write(pack_command(args))  # type: ignore[arg-type]  # the stub knows one-tuples only
        self._waiting.append(future)
        return future

    def tell(self, args: tuple[Argument, ...]) -> None:
        """Send a command that Redis answers with pushes alone (SUBSCRIBE, UNSUBSCRIBE in RESP3)."""
        if self._transport is None:
            raise RedisUnavailable("not connected to Redis")
        self._transport.write(pack_command(args))  # type: ignore[arg-type]  # the stub knows one-tuples only
        self._waiting.append(_Told(len(args) - 1))

    def ask(self) -> None:
        """Have Redis say something, unless an answer is due anyway."""
        if not self._waiting:
            self.call(("PING",)).add_done_callback(_forget)

    def overdue(self, timeout_s: float) -> bool:
        """Whether someone waits and nothing was heard for ``timeout_s``."""
        return bool(self._waiting) and self._loop.time() - self.heard_at > timeout_s

    def abort(self, reason: str) -> None:
        """Drop the connection without waiting for what is unsent."""
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.abort()


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
    ) -> None:
        self._target = target
        self._name = name
        self._timeout_s = timeout_s
        self._on_push = on_push
        self._on_connect = on_connect
        self._on_change = on_change
        self._on_failure = on_failure
        self._told = ""
        self._wire: _Wire | None = None
        self._up = asyncio.Event()
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

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        """Run a script by its digest; the server is given its text when it does not know it.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """
        try:
            return await self.call("EVALSHA", script.sha1, len(keys), *keys, *args)
        except RedisRefused as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.call("EVAL", script.text, len(keys), *keys, *args)

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

    async def _connect(self) -> _Wire:
        loop, target = asyncio.get_running_loop(), self._target
        if target.unix_path is not None:
            _, wire = await loop.create_unix_connection(lambda: _Wire(self._on_push), target.unix_path)
        else:
            _, wire = await loop.create_connection(
                lambda: _Wire(self._on_push), target.host, target.port, ssl=target.tls
            )
        return wire

    async def _greet(self) -> None:
        target = self._target
        login = ("AUTH", target.username or "default", target.password) if target.password else ()
        greeting = [self.call("HELLO", 3, *login, "SETNAME", self._name)]
        if target.database:
            greeting.append(self.call("SELECT", target.database))
        greeting.append(self.call("PING"))  # while the data set is loading, HELLO works and this is refused
        # All of it in one go: what others send from now on must not reach Redis before SELECT.
        await asyncio.gather(*greeting)

    def _drop(self, *, tell: bool = True) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort("the link was stopped")
        if self._up.is_set():
            self._up.clear()
            if tell:
                self._on_change(False)


def _forget(future: asyncio.Future[Reply]) -> None:
    """Take note of a failure that the loop around the connection deals with."""
    if not future.cancelled():
        future.exception()
