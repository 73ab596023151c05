"""``/ws/{session_id}``: who may open a socket, and what it is told first."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from uuid import uuid4

from backplane.errors import InvalidCursor, NotYours, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.ownership import Owned, Ownership
from backplane.position import Position, parse_cursor
from backplane.session_log import Resumed, SessionLog
from backplane.settings import Settings
from gateway import handshake, outgoing
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.close_codes import CloseCode
from gateway.connection import Connection, State
from gateway.conversation import Conversation
from gateway.drain import close_paced, unless
from gateway.errors import ClientError, redis_unavailable, session_taken
from gateway.expiry import Expiries
from gateway.frames import FrameDecoder
from gateway.health import Health
from gateway.hub import Hub
from gateway.identity import Identity, Stated, check_scope
from gateway.origins import Origins
from gateway.problem import problem_body, problem_headers
from gateway.tasks import active_task
from gateway.text_stream import Have, parse_have
from gateway.wheel import Wheel

PATH = "/ws/"
_SOCKETS_A_TURN = 500
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
        admission: Admission,
        origins: Origins,
        session_log: SessionLog,
        hub: Hub,
        conversation: Conversation,
        ownership: Ownership,
        health: Health,
        refused: Counter[str],
        log: Logger,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.conversation = conversation
        self.wheel = Wheel(settings.heartbeat_s, settings.connection_max_age_s)
        self.expiries = Expiries(settings.auth_grace_s, self._on_expired, self._on_grace_over)
        self.closed_by_code: dict[int, int] = {}
        self.refused = refused
        self.opened = 0
        self._keys = keys
        self._authenticator = authenticator
        self._admission = admission
        self._origins = origins
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
                await self._open(connection, head)
        except handshake.HandshakeError as error:
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

    async def _open(self, connection: Connection, head: bytes) -> None:
        request, fault = _parse(head)
        if not request.raw_path.startswith(PATH) or "/" in request.raw_path.removeprefix(PATH):
            raise ClientError(404, "not_found", "sockets are opened at /ws/{session_id}")
        if self._health.draining:
            raise _draining()
        await self._admission.knock(connection, request.headers.get("x-forwarded-for"))
        try:
            if fault is not None:
                raise fault
            await self._let_in(connection, request)
        except NotYours:
            self._tell_and_close(connection, request, session_taken())
        except ClientError as error:
            if error.is_for_later:
                raise
            # Browsers hide the HTTP answer of a refused upgrade, so what a client has to understand is said
            # on an accepted socket.
            self._tell_and_close(connection, request, error)

    async def _let_in(self, connection: Connection, request: handshake.UpgradeRequest) -> None:
        self._check_origin(request)
        identity = await self._authenticator.identify(_token(request), _stated(request))
        check_scope(identity.grant, "listen")
        cursor = _cursor(request)
        connection.identity = identity
        connection.connection_id = uuid4().hex
        connection.wants_chunks = request.query.get("stream") == "1"
        await self._admission.join(connection, identity)
        session = await self._session_log.locate(identity.tenant_id, identity.session_id)
        if self._health.deaf_to(session):
            raise redis_unavailable()

        def greet(resumed: Resumed) -> bool:
            if self._health.draining:  # since the log was asked
                self._refuse(connection, _draining())
                return False
            self._authenticator.check(identity.grant)  # it may have been revoked meanwhile
            return self._accept(connection, request) and self._greet(connection, identity, resumed)

        has = _has(request.query.get("have")) if connection.wants_chunks else {}
        feed = await self.hub.attach(session, connection, cursor, greet, identity.owner, has)
        if feed is None:
            return
        connection.feed = feed
        if self.settings.session_policy == "replace":
            await self._session_log.replace_older(session, connection.generation)

    def _check_origin(self, request: handshake.UpgradeRequest) -> None:
        if not self._origins.allows(request.headers.get("origin"), request.headers.get("host")):
            detail = "pages of this web origin may not connect; the operator can list it in ALLOWED_ORIGINS"
            raise ClientError(403, "origin_not_allowed", detail)

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
            "active_tasks": [active_task(task) for task in resumed.running],
            "limits": self._limits(identity),
        }
        connection.write(outgoing.message(identity, now, "connection_ack", data))
        self.wheel.add(connection)
        self._admission.entered(connection)
        self.expiries.add(connection)
        self.opened += 1
        connection.since = int(now)
        self._ownership.own(self._owned(connection, identity))
        return True

    def _limits(self, identity: Identity) -> dict[str, object]:
        settings = self.settings
        return {
            "message_max_bytes": settings.message_max_bytes,
            "sends_in_flight_max": settings.sends_in_flight_max,
            "messages_per_s": settings.messages_per_s,
            "messages_burst": settings.messages_burst,
            "token_expires_at": identity.grant.expires_at,
            "auth_grace_s": settings.auth_grace_s,
        }

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
        self.refused[error.error_code] += 1
        self._admission.leave(connection)  # or who was not let in would keep others out until it has gone
        if self._accept(connection, request):
            self._tell_and_end(connection, error)

    def _tell_and_end(self, connection: Connection, error: ClientError) -> None:
        connection.write(outgoing.error(connection.identity, time.time(), error))
        connection.close(error.close_code, error.detail)

    def _refuse(self, connection: Connection, error: ClientError) -> None:
        if connection.state == State.OPEN:  # accepted already: Redis went away right behind
            connection.close(CloseCode.TRY_LATER, error.detail)
            return
        self.refused[error.error_code] += 1
        body = problem_body(error.status, error.error_code, error.detail, error.limit)
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

    def end(self, connection: Connection, error: ClientError) -> None:
        """Close a socket because of what its client may not, or may no longer, do."""
        self.refused[error.error_code] += 1
        self._tell_and_end(connection, error)

    def renew(self, connection: Connection, identity: Identity) -> None:
        """Go on with a socket under a new token."""
        connection.identity = identity
        self.expiries.add(connection)

    def _on_expired(self, connection: Connection) -> None:
        seconds = f"{self.settings.auth_grace_s:g} s"
        detail = f"the token has expired; send auth with a new one within {seconds}, or the socket is closed"
        error = ClientError(401, "token_expired", detail, retry_after_s=0)
        connection.write(outgoing.error(connection.identity, time.time(), error))

    def _on_grace_over(self, connection: Connection) -> None:
        self.end(connection, ClientError(401, "token_expired", "the token has expired; get a new one"))

    async def end_where(self, fits: Callable[[Identity, str], bool], error: ClientError) -> int:
        """Close all sockets that fit (by identity and connection id); returns how many."""
        return await self._each_where(fits, lambda connection: self.end(connection, error))

    async def retire_where(self, fits: Callable[[Identity, str], bool], reason: str) -> int:
        """Ask the clients of all sockets that fit to come back; returns how many."""
        return await self._each_where(fits, lambda connection: self.retire(connection, reason))

    async def _each_where(
        self, fits: Callable[[Identity, str], bool], then: Callable[[Connection], None]
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

    def on_gone(self, connection: Connection) -> None:
        """The transport is closed."""
        self._admission.gone(connection)
        self.expiries.remove(connection)
        self.conversation.gone(connection)
        if connection.slot >= 0 and connection.identity is not None:
            self.wheel.remove(connection)
            if self._all_gone is not None and not len(self.wheel):
                self._all_gone.set()
            self._ownership.disown(connection.connection_id)

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


def _draining() -> ClientError:
    return ClientError(503, "draining", "this pod is about to stop; connect again", retry_after_s=1)


def _parse(head: bytes) -> tuple[handshake.UpgradeRequest, ClientError | None]:
    """The request, and what is wrong with it if that can be told over a socket.

    Raises:
        HandshakeError: it cannot become a socket.
    """
    try:
        return handshake.parse(head), None
    except handshake.HandshakeError as error:
        if error.request is None:
            raise
        return error.request, ClientError(400, "bad_request", error.detail)


def _token(request: handshake.UpgradeRequest) -> str | None:
    """The token from the header, the subprotocol pair, or the query."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    found = {credentials.strip()} if scheme.lower() == "bearer" and credentials else set()
    for offered in request.subprotocols:
        if offered.startswith(_BEARER_SUBPROTOCOL):
            found.add(offered.removeprefix(_BEARER_SUBPROTOCOL))
    if "token" in request.query:
        found.add(request.query["token"])
    if len(found) > 1:
        raise ClientError(400, "bad_request", "several tokens were given, and they differ; send one")
    return next(iter(found), None)


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


def _has(text: str | None) -> dict[str, Have]:
    try:
        return parse_have(text) if text else {}
    except ValueError as error:
        raise ClientError(400, "invalid_field", str(error)) from None


def _cursor(request: handshake.UpgradeRequest) -> Position | None:
    text = request.query.get("cursor")
    if not text:
        return None
    try:
        return parse_cursor(text)
    except InvalidCursor as error:
        raise ClientError(400, "invalid_cursor", str(error)) from None
