"""``/ws/{session_id}``: who may open a socket, and what it is told first."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

from backplane.errors import InvalidCursor, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.ownership import Owned, Ownership
from backplane.position import Position, parse_cursor
from backplane.session_log import Resumed, SessionLog
from backplane.settings import Settings
from gateway import handshake, outgoing
from gateway.auth import Authenticator, Identity, Stated
from gateway.close_codes import CloseCode
from gateway.connection import Connection, State
from gateway.conversation import Conversation
from gateway.drain import close_paced, unless
from gateway.errors import ClientError, redis_unavailable
from gateway.frames import FrameDecoder
from gateway.health import Health
from gateway.hub import Hub
from gateway.problem import problem_body, problem_headers
from gateway.wheel import Wheel

PATH = "/ws/"
_NOTING_S = 1.0  # a Redis that does not answer keeps no client from leaving
_ANSWER_S = 1.0  # time for the answers to the last Closes, where there is no hurry a tenth of all at most
SUBPROTOCOL = "orchestrator.v1"
_BEARER_SUBPROTOCOL = "bearer."
_NAMES = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")


class WebSocketEndpoint:
    """Opens sockets, and is what all open sockets of a pod share."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        authenticator: Authenticator,
        session_log: SessionLog,
        hub: Hub,
        conversation: Conversation,
        ownership: Ownership,
        health: Health,
        log: Logger,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.conversation = conversation
        self.wheel = Wheel(settings.heartbeat_s, settings.connection_max_age_s)
        self.closed_by_code: dict[int, int] = {}
        self.opened = 0
        self._keys = keys
        self._authenticator = authenticator
        self._session_log = session_log
        self._ownership = ownership
        self._health = health
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: set[asyncio.Task[None]] = set()
        self._all_gone: asyncio.Event | None = None  # there while the pod stops

    @property
    def tick(self) -> int:
        """The wheel's present tick."""
        return self.wheel.tick

    # Opening.

    async def open(self, connection: Connection, head: bytes) -> None:
        """Judge an upgrade request and, if it is right, attach the socket to its session."""
        try:
            async with asyncio.timeout(self.settings.handshake_timeout_s):
                await self._open(connection, handshake.parse(head))
        except handshake.HandshakeError as error:
            if error.request is not None:
                problem = ClientError(400, "bad_request", error.detail)
                self._tell_and_close(connection, error.request, problem)
                return
            body = problem_body(error.status, error.error_code, error.detail)
            connection.refuse(handshake.refuse_response(error.status, list(error.headers), body))
        except (TimeoutError, RedisUnavailable):
            self._refuse(connection, redis_unavailable())
        except ClientError as error:
            self._refuse(connection, error)
        except Exception:  # noqa: BLE001  # a task's boundary: the client must not be left hanging
            self._log.exception("handshake_failed")
            self._refuse(
                connection, ClientError(500, "internal_error", "a mistake of ours; it has been logged")
            )

    def on_opened(self, task: asyncio.Task[None]) -> None:
        """The task of a handshake has ended."""
        if not task.cancelled() and task.exception() is not None:
            self._log.error("handshake_failed", exc_info=task.exception())

    async def _open(self, connection: Connection, request: handshake.UpgradeRequest) -> None:
        if not request.raw_path.startswith(PATH) or "/" in request.raw_path.removeprefix(PATH):
            raise ClientError(404, "not_found", "sockets are opened at /ws/{session_id}")
        if self._health.draining:
            raise _draining()
        try:
            if self.settings.auth == "none":
                _check_origin(request)
            identity = self._authenticator.identify(_token(request), _stated(request))
            cursor = _cursor(request)
        except ClientError as error:
            # Browsers hide the HTTP answer of a refused upgrade, so what a client has to understand is said
            # on an accepted socket.
            self._tell_and_close(connection, request, error)
            return
        connection.identity = identity
        connection.connection_id = uuid4().hex
        connection.wants_chunks = request.query.get("stream") == "1"
        session = await self._session_log.locate(identity.tenant_id, identity.session_id)
        if self._health.deaf_to(session):
            raise redis_unavailable()

        def greet(resumed: Resumed) -> bool:
            if self._health.draining:  # since the log was asked
                self._refuse(connection, _draining())
                return False
            return self._accept(connection, request) and self._greet(connection, identity, resumed)

        feed = await self.hub.attach(session, connection, cursor, greet)
        if feed is None:
            return
        connection.feed = feed
        if self.settings.session_policy == "replace":
            await self._session_log.replace_older(session, connection.generation)

    def _accept(self, connection: Connection, request: handshake.UpgradeRequest) -> bool:
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.subprotocols else None
        decoder = FrameDecoder(self.settings.message_max_bytes, self.settings.skip_max_bytes)
        return connection.accept(handshake.accept_response(request, subprotocol), decoder)

    def _greet(self, connection: Connection, identity: Identity, resumed: Resumed) -> bool:
        now = time.time()
        epoch = resumed.page.epoch
        data = {
            "connection_id": connection.connection_id,
            "session_id": identity.session_id,
            "tenant_id": identity.tenant_id,
            "tenant_tier": identity.tenant_tier,
            "server_time": now,
            "heartbeat_s": self.settings.heartbeat_s,
            "cursor": str(Position(epoch, resumed.start)),
            "resume": {
                "status": resumed.status,
                "from": resumed.start,
                "to": resumed.head,
                "oldest": resumed.oldest,
                "epoch": epoch,
            },
            "limits": {
                "message_max_bytes": self.settings.message_max_bytes,
                "sends_in_flight_max": self.settings.sends_in_flight_max,
            },
        }
        connection.write(outgoing.message(identity, now, "connection_ack", data))
        self.wheel.add(connection)
        self.opened += 1
        connection.since = int(now)
        self._ownership.own(self._owned(connection, identity))
        return True

    def _owned(self, connection: Connection, identity: Identity) -> Owned:
        return Owned(
            connection.connection_id,
            identity.tenant_id,
            identity.tenant_tier,
            identity.session_id,
            identity.user_id,
            connection.since,
        )

    def _tell_and_close(
        self, connection: Connection, request: handshake.UpgradeRequest, error: ClientError
    ) -> None:
        if self._accept(connection, request):
            connection.write(outgoing.error(None, time.time(), error))
            connection.close(error.close_code, error.detail)

    def _refuse(self, connection: Connection, error: ClientError) -> None:
        if connection.state == State.OPEN:  # accepted already: Redis went away right behind
            connection.close(CloseCode.TRY_LATER, error.detail)
            return
        body = problem_body(error.status, error.error_code, error.detail)
        connection.refuse(handshake.refuse_response(error.status, problem_headers(error), body))

    # Open sockets.

    def on_client_close(self, connection: Connection, code: int) -> None:
        """The client says goodbye; what it was sent is noted before it is answered.

        So a client that waits for the answer and comes back without a cursor is sent nothing twice.
        """
        self._detach(connection, partial(connection.finish, code))

    def retire(self, connection: Connection, reason: str) -> None:
        """Ask a client to come back, and close its socket; what it was sent is noted before."""
        if connection.attached:  # else it takes its leave already
            self._detach(connection, partial(self.ask_to_reconnect, connection, reason))

    def _detach(self, connection: Connection, then: Callable[[], None]) -> None:
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

    def ask_to_reconnect(self, connection: Connection, reason: str) -> None:
        """Ask a client to come back after a random while, and close its socket at once."""
        if connection.identity is not None:
            after_ms = round(random.uniform(0, self.settings.reconnect_jitter_s) * 1000)
            data = {"reason": reason, "after_ms": after_ms}
            connection.write(outgoing.message(connection.identity, time.time(), "reconnect", data))
        connection.close(CloseCode.RESTART, reason)

    def on_gone(self, connection: Connection) -> None:
        """The transport is closed."""
        if connection.slot >= 0 and connection.identity is not None:
            self.wheel.remove(connection)
            if self._all_gone is not None and not len(self.wheel):
                self._all_gone.set()
            self._ownership.disown(connection.connection_id, connection.identity.tenant_id)

    def count_close(self, code: int) -> None:
        """Count why sockets are closed."""
        self.closed_by_code[code] = self.closed_by_code.get(code, 0) + 1

    # The whole pod.

    async def rewrite_ownership(self) -> None:
        """Enter all sockets in Redis anew.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        # Lazily: one that closes while others are being written must not be entered after it was struck out.
        await self._ownership.rewrite(
            self._owned(connection, connection.identity)
            for connection in self.wheel.connections
            if connection.identity is not None and connection.slot >= 0
        )

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


def _draining() -> ClientError:
    return ClientError(503, "draining", "this pod is about to stop; connect again", retry_after_s=1)


def _check_origin(request: handshake.UpgradeRequest) -> None:
    """Without tokens, a web page of anyone's that is open in a developer's browser could talk to this pod."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ClientError(403, "forbidden", "with AUTH=none, only pages of this very host may connect")


def _token(request: handshake.UpgradeRequest) -> str | None:
    """The token from the header, the subprotocol pair, or the query."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    for offered in request.subprotocols:
        if offered.startswith(_BEARER_SUBPROTOCOL):
            return offered.removeprefix(_BEARER_SUBPROTOCOL)
    return request.query.get("token")


def _stated(request: handshake.UpgradeRequest) -> Stated:
    query = request.query
    session_id = request.path.removeprefix(PATH)
    return Stated(
        query.get("tenant_id"),
        query.get("tenant_tier"),
        session_id,
        query.get("user_id"),
        query.get("agent_id"),
        _NAMES,
    )


def _cursor(request: handshake.UpgradeRequest) -> Position | None:
    text = request.query.get("cursor")
    if not text:
        return None
    try:
        return parse_cursor(text)
    except InvalidCursor as error:
        raise ClientError(400, "invalid_cursor", str(error)) from None
