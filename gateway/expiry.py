"""One timer for the tokens of all sockets: told when they expire, closed when the grace is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.listener import Listener

_TICK_S = 0.5


class Expiries:
    """Sockets by the second in which their tokens end.

    Args:
        grace_s: between a token's end and its socket's.
        on_expired: told of a socket whose token has ended; it may still show a new one.
        on_over: told of a socket that has not.
    """

    def __init__(
        self,
        grace_s: float,
        on_expired: Callable[[Listener], None],
        on_over: Callable[[Listener], None],
    ) -> None:
        self._grace_s = grace_s
        self._on_expired = on_expired
        self._on_over = on_over
        self._by_second: dict[int, set[Listener]] = {}

    def add(self, connection: Listener) -> None:
        """Watch a socket's token, in place of the one that it had before."""
        self.remove(connection)
        assert connection.identity is not None
        expires_at = connection.identity.grant.expires_at
        if expires_at is not None:
            self._enter(connection, expires_at)

    def remove(self, connection: Listener) -> None:
        """Watch it no more."""
        sockets = self._by_second.get(connection.token_ends)
        if sockets is not None:
            sockets.discard(connection)
            if not sockets:
                del self._by_second[connection.token_ends]
        connection.token_ends = 0

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            self.turn(time.time())

    def turn(self, now: float) -> None:
        """Tell of all whose time has come.

        Args:
            now: seconds since 1970.
        """
        for second in sorted(second for second in self._by_second if second <= now):
            for connection in list(self._by_second.get(second, ())):
                self._act(connection, now)

    def _act(self, connection: Listener, now: float) -> None:
        self.remove(connection)
        assert connection.identity is not None
        over_at = (connection.identity.grant.expires_at or now) + self._grace_s
        if now >= over_at:
            self._on_over(connection)
        else:
            self._on_expired(connection)
            self._enter(connection, over_at)

    def _enter(self, connection: Listener, at: float) -> None:
        connection.token_ends = int(at) + (at > int(at))
        self._by_second.setdefault(connection.token_ends, set()).add(connection)
