"""One TCP connection to Redis in RESP3: bytes to replies and pushes, replies to those who wait in line."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hiredis import PushNotification, Reader, ReplyError, pack_command

from backplane.errors import RedisRefused, RedisUnavailable

Reply = Any
Argument = str | bytes | int
OnPush = Callable[[list[Any]], None]
OnRefused = Callable[[tuple[Argument, ...], str], None]
"""Told the command and Redis's words; a subscription has no reply of its own that could carry them."""

_MORE = object()  # what the reader returns when a reply is not complete yet
_CONFIRMATIONS = frozenset({b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"})
_MAX_IN_FLIGHT = 20_000


class _Told:
    """Stands in line for a command that is answered by one push for each of its channels."""

    def __init__(self, args: tuple[Argument, ...]) -> None:
        self.args = args
        self.kind = str(args[0]).lower().encode()
        self.channels = {name if isinstance(name, bytes) else str(name).encode() for name in args[1:]}

    def confirms(self, push: list[Any]) -> bool:
        """Whether a push is one of its answers; the server also unsubscribes by itself, when a slot goes."""
        if push[0] != self.kind or push[1] not in self.channels:
            return False
        self.channels.remove(push[1])
        return True


class Wire(asyncio.Protocol):
    """A connection.

    Args:
        on_push: gets every pub/sub message, confirmation and invalidation; must not raise.
        on_refused: told of a refused subscription; without it, that ends the connection.
    """

    def __init__(self, on_push: OnPush, on_refused: OnRefused | None = None) -> None:
        self._reader = Reader(notEnoughData=_MORE)
        self._on_push = on_push
        self._on_refused = on_refused
        self._waiting: deque[asyncio.Future[Reply] | _Told] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.heard_at = self._loop.time()
        self.lost = asyncio.Event()
        self.reason = ""
        self._may_rest = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self._may_rest = True
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        while (reply := reader.gets()) is not _MORE:
            if type(reply) is PushNotification:
                if reply[0] in _CONFIRMATIONS:
                    self._confirm(reply)
                self._on_push(reply)
                continue
            future = waiting.popleft()
            if isinstance(future, _Told):  # a refused subscription must not pass for somebody's reply
                if self._on_refused is None:
                    self.abort(str(reply))
                    return
                self._on_refused(future.args, str(reply))
                continue
            if isinstance(reply, ReplyError):
                self._refuse(future, str(reply))
            elif not future.done():  # whoever waited may be gone; the reply still takes its place in line
                future.set_result(reply)

    def _refuse(self, future: asyncio.Future[Reply], words: str) -> None:
        if not future.done():
            future.set_exception(RedisRefused(words))
        if words.startswith("READONLY"):  # it was the primary once; whoever it is now, it is not for us
            self.abort(words)

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

    def _confirm(self, push: list[Any]) -> None:
        told = self._waiting[0] if self._waiting else None
        if isinstance(told, _Told) and told.confirms(push) and not told.channels:
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
        """Send a command that Redis answers with pushes alone ((S)SUBSCRIBE, (S)UNSUBSCRIBE in RESP3)."""
        if self._transport is None:
            raise RedisUnavailable("not connected to Redis")
        self._transport.write(pack_command(args))  # type: ignore[arg-type]  # the stub knows one-tuples only
        self._waiting.append(_Told(args))

    def ask(self) -> None:
        """Have Redis say something, unless an answer is due anyway."""
        if not self._waiting:
            self.call(("PING",)).add_done_callback(forget)

    def overdue(self, timeout_s: float) -> bool:
        """Whether someone waits and nothing was heard for ``timeout_s``."""
        return bool(self._waiting) and self._loop.time() - self.heard_at > timeout_s

    def rest(self, delay_s: float) -> None:
        """Read nothing for a moment: what is pushed meanwhile is then read in one go.

        Nothing, if it has read nothing since the last time: else a busy connection, whose pushes have several
        rest, would keep the others from ever reading.
        """
        if self._transport is not None and self._may_rest and not self._transport.is_closing():
            self._may_rest = False
            self._transport.pause_reading()
            self._loop.call_later(delay_s, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self, reason: str) -> None:
        """Drop the connection without waiting for what is unsent."""
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.abort()


def forget(future: asyncio.Future[Any]) -> None:
    """Take note of a failure that somebody else deals with."""
    if not future.cancelled():
        future.exception()
