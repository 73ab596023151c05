"""What all open connections of a pod share: their wheel and their tokens' ends, and how they are closed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from backplane.log import LEVEL, Logger
from backplane.ownership import Owned, Ownership
from backplane.settings import Settings
from gateway import outgoing
from gateway.admission import Admission
from gateway.close_codes import CloseCode
from gateway.drain import close_paced, unless
from gateway.errors import ClientError
from gateway.expiry import Expiries
from gateway.hub import Hub
from gateway.identity import Identity
from gateway.listener import Listener
from gateway.wheel import Wheel

OTHER_CODE = 0
_CODES = frozenset({*CloseCode, *range(1000, 1016)})  # RFC 6455, 7.4.1
_SOCKETS_A_TURN = 500
_NOTING_S = 1.0  # a Redis that does not answer keeps no client from leaving
_ANSWER_S = 1.0  # time for the answers to the last Closes, where there is no hurry a tenth of all at most


class OpenConnections:
    """The connections of a pod that were let in, sockets and event streams alike.

    Args:
        refused: counts what clients are told they may not do, by error code.

    Attributes:
        closed_by_code: how many ended how; `OTHER_CODE` for codes that only clients use.
        opened: how many there were.
        open_by_kind: how many there are, sockets and event streams.
        slow: how many of them cannot take more now.
        slowed: how often that began.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        admission: Admission,
        ownership: Ownership,
        unlisten: Callable[[Listener], None],
        refused: Counter[str],
        log: Logger,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.wheel = Wheel(settings.heartbeat_s, settings.connection_max_age_s)
        self.expiries = Expiries(settings.auth_grace_s, self._on_expired, self._on_grace_over)
        self.closed_by_code: dict[int, int] = {}
        self.refused = refused
        self.opened = 0
        self.open_by_kind = Counter(dict.fromkeys(("socket", "event_stream"), 0))
        self.slow = 0
        self.slowed = 0
        self._admission = admission
        self._ownership = ownership
        self._unlisten = unlisten
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: set[asyncio.Task[None]] = set()
        self._all_gone: asyncio.Event | None = None  # there while the pod stops

    @property
    def tick(self) -> int:
        """The wheel's present tick."""
        return self.wheel.tick

    def enter(self, connection: Listener, identity: Identity) -> None:
        """A connection is open now."""
        now = time.time()
        self.wheel.add(connection)
        self._admission.entered(connection)
        self.expiries.add(connection)
        self.opened += 1
        self.open_by_kind[connection.kind] += 1
        connection.since = int(now)
        self._ownership.own(_owned(connection, identity))
        if LEVEL.debug:
            self._log.debug("connection_opened", **connection_ids(connection))

    def retire(self, connection: Listener, reason: str) -> None:
        """Ask a client to come back, and close its socket; what it was sent is noted before."""
        if connection.attached:  # else it takes its leave already
            self.detach(connection, partial(self.ask_to_reconnect, connection, reason))

    def detach(self, connection: Listener, then: Callable[[], None]) -> None:
        """Take a socket off its session at once, and go on when what it was sent is noted.

        At once, because what is written from now on its client may no longer read.
        """
        noting = connection.detach()
        if noting is None:
            then()
        else:
            task = asyncio.create_task(self._when_noted(noting, then))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _when_noted(self, noting: asyncio.Task[None], then: Callable[[], None]) -> None:
        await asyncio.wait({noting}, timeout=_NOTING_S)
        then()

    def keep(self, noting: asyncio.Task[None]) -> None:
        """Remember a note on its way to Redis: the pod does not end before it is there."""
        self._notes.add(noting)
        noting.add_done_callback(self._notes.discard)

    async def noted(self) -> None:
        """Wait until what closed sockets were sent is noted."""
        if self._notes:
            await asyncio.wait(self._notes)

    def ask_to_reconnect(self, connection: Listener, reason: str) -> None:
        """Ask a client to come back after a random while, and close its socket at once."""
        if connection.identity is not None:
            after_ms = round(random.uniform(0, self.settings.reconnect_jitter_s) * 1000)
            data = {"reason": reason, "after_ms": after_ms}
            message = outgoing.message(connection.identity, time.time(), "reconnect", data)
            connection.send_away(message, after_ms)
        connection.close(CloseCode.RESTART, reason)

    def end(self, connection: Listener, error: ClientError) -> None:
        """Close a socket because of what its client may not, or may no longer, do."""
        self.refused[error.error_code] += 1
        connection.say(outgoing.error(connection.identity, time.time(), error))
        connection.close(error.close_code, error.detail)

    def renew(self, connection: Listener, identity: Identity) -> None:
        """Go on with a socket under a new token."""
        connection.identity = identity
        self.expiries.add(connection)

    def _on_expired(self, connection: Listener) -> None:
        seconds = f"{self.settings.auth_grace_s:g} s"
        detail = f"the token has expired; {connection.renewal} within {seconds}, or the connection is closed"
        error = ClientError(401, "token_expired", detail, retry_after_s=0)
        connection.say(outgoing.error(connection.identity, time.time(), error))

    def _on_grace_over(self, connection: Listener) -> None:
        self.end(connection, ClientError(401, "token_expired", "the token has expired; get a new one"))

    async def end_where(self, fits: Callable[[Identity, str], bool], error: ClientError) -> int:
        """Close all sockets that fit (by identity and connection id); returns how many."""
        return await self._each_where(fits, lambda connection: self.end(connection, error))

    async def retire_where(self, fits: Callable[[Identity, str], bool], reason: str) -> int:
        """Ask the clients of all sockets that fit to come back; returns how many."""
        return await self._each_where(fits, lambda connection: self.retire(connection, reason))

    async def _each_where(
        self, fits: Callable[[Identity, str], bool], then: Callable[[Listener], None]
    ) -> int:
        found = 0
        for number, connection in enumerate(self.wheel.connections):
            identity = connection.identity
            if connection.attached and identity is not None and fits(identity, connection.connection_id):
                then(connection)
                found += 1
            if number % _SOCKETS_A_TURN == 0:
                await asyncio.sleep(0)  # messages go on meanwhile
        return found

    def on_gone(self, connection: Listener) -> None:
        """The transport is closed."""
        self._admission.gone(connection)
        self.expiries.remove(connection)
        self._unlisten(connection)
        if connection.slot >= 0 and connection.identity is not None:
            self.wheel.remove(connection)
            self.open_by_kind[connection.kind] -= 1
            if self._all_gone is not None and not len(self.wheel):
                self._all_gone.set()
            self._ownership.disown(connection.connection_id)
            if LEVEL.debug:
                open_s = int(time.time()) - connection.since
                self._log.debug("connection_closed", open_s=open_s, **connection_ids(connection))

    def count_close(self, code: int) -> None:
        """Count why sockets are closed."""
        if code not in _CODES:  # a client may send any: they are not to be counted each for itself
            code = OTHER_CODE
        self.closed_by_code[code] = self.closed_by_code.get(code, 0) + 1

    # The whole pod.

    def buffered_bytes(self) -> int:
        """What connections have not taken yet of what was written to them."""
        return sum(connection.buffered_bytes for connection in self.wheel.connections)

    async def rewrite_ownership(self) -> None:
        """Enter all sockets in Redis anew.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        # Lazily: one that closes while others are being written must not be entered after it was struck out.
        await self._ownership.rewrite(
            _owned(connection, connection.identity)
            for connection in self.wheel.connections
            if connection.identity is not None and connection.slot >= 0
        )

    async def rewrite_counts(self) -> None:
        """Count all sockets in Redis anew.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self._admission.rewrite(self.wheel.connections)

    async def close_all(self, over_s: float, reason: str, hurry: asyncio.Event) -> None:
        """Close every socket, evenly over a time, and wait for the clients' answers within it.

        Once ``hurry`` is set, the rest is closed at once and has a moment to answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + over_s
        gone = self._all_gone = asyncio.Event()
        await close_paced(self.wheel.connections, over_s - min(_ANSWER_S, over_s / 10), reason, hurry)
        if len(self.wheel):
            await unless(hurry, gone.wait(), deadline - loop.time())
        if len(self.wheel):
            await unless(gone, asyncio.sleep(_ANSWER_S), deadline - loop.time())
        if len(self.wheel):
            self._log.warning("sockets_left", sockets=len(self.wheel))
            for connection in self.wheel.connections:  # those whose notes Redis has not answered yet
                self.ask_to_reconnect(connection, reason)


def connection_ids(connection: Listener) -> dict[str, str | None]:
    """What a connection is known by in log events."""
    identity, (traceparent, _) = connection.identity, connection.trace
    return {
        "connection_id": connection.connection_id,
        "tenant_id": None if identity is None else identity.tenant_id,
        "session_id": None if identity is None else identity.session_id,
        "trace_id": None if traceparent is None else traceparent[3:35],
    }


def _owned(connection: Listener, identity: Identity) -> Owned:
    return Owned(
        connection.connection_id,
        identity.tenant_id,
        identity.tenant_tier,
        identity.session_id,
        identity.user_id,
        connection.since,
    )
