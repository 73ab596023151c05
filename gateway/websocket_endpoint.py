"""``/ws/{session_id}``: who may open a socket, and what it is told first."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from backplane.errors import NotYours, RedisUnavailable
from backplane.log import Logger
from backplane.trace_context import read_trace
from gateway import handshake, outgoing
from gateway.admission import Admission
from gateway.close_codes import CloseCode
from gateway.connection import Connection
from gateway.conversation import Conversation
from gateway.errors import ClientError, redis_unavailable, session_taken
from gateway.frames import FrameDecoder
from gateway.identity import Stated
from gateway.listener import State
from gateway.open_connections import OpenConnections
from gateway.opening import Opening, read_cursor, read_have
from gateway.origins import Origins
from gateway.problem import problem_body, problem_headers

PATH = "/ws/"
SUBPROTOCOL = "orchestrator.v1"
_BEARER_SUBPROTOCOL = "bearer."
_NAMES = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")


class WebSocketEndpoint:
    """Opens sockets."""

    def __init__(
        self,
        opening: Opening,
        connections: OpenConnections,
        admission: Admission,
        origins: Origins,
        conversation: Conversation,
        log: Logger,
    ) -> None:
        self.connections = connections
        self.conversation = conversation
        self._settings = connections.settings
        self._refused = connections.refused
        self._opening = opening
        self._admission = admission
        self._origins = origins
        self._log = log

    async def open(self, connection: Connection, head: bytes) -> None:
        """Judge an upgrade request and, if it is right, attach the socket to its session."""
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
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
        await self._opening.knock(connection, request.headers.get("x-forwarded-for"))
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
        identity = await self._opening.identify(connection, _token(request), _stated(request))
        headers = request.headers
        connection.trace = read_trace(headers.get("traceparent"), headers.get("tracestate"))
        cursor = read_cursor(request.query.get("cursor"))
        connection.wants_chunks = request.query.get("stream") == "1"
        has = read_have(request.query.get("have") if connection.wants_chunks else None)
        await self._opening.join(connection, identity)
        await self._opening.attach(
            connection, identity, cursor, lambda _resumed: self._accept(connection, request), has
        )

    def _check_origin(self, request: handshake.UpgradeRequest) -> None:
        if not self._origins.allows(request.headers.get("origin"), request.headers.get("host")):
            detail = "pages of this web origin may not connect; the operator can list it in ALLOWED_ORIGINS"
            raise ClientError(403, "origin_not_allowed", detail)

    def _accept(self, connection: Connection, request: handshake.UpgradeRequest) -> bool:
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.subprotocols else None
        decoder = FrameDecoder(self._settings.message_max_bytes, self._settings.skip_max_bytes)
        return connection.accept(handshake.accept_response(request, subprotocol), decoder)

    def _tell_and_close(
        self, connection: Connection, request: handshake.UpgradeRequest, error: ClientError
    ) -> None:
        self._note_refusal(error)
        self._admission.leave(connection)  # or who was not let in would keep others out until it has gone
        if self._accept(connection, request):
            connection.say(outgoing.error(connection.identity, time.time(), error))
            connection.close(error.close_code, error.detail)

    def _refuse(self, connection: Connection, error: ClientError) -> None:
        if connection.state == State.OPEN:  # accepted already: Redis went away right behind
            connection.close(CloseCode.TRY_LATER, error.detail)
            return
        self._note_refusal(error)
        body = problem_body(error.status, error.error_code, error.detail, error.limit)
        connection.refuse(handshake.refuse_response(error.status, problem_headers(error), body))

    def _note_refusal(self, error: ClientError) -> None:
        self._refused[error.error_code] += 1
        self._log.debug("socket_refused", error_code=error.error_code)

    def on_client_close(self, connection: Connection, code: int) -> None:
        """The client says goodbye; what it was sent is noted before it is answered.

        So a client that waits for the answer and comes back without a cursor is sent nothing twice.
        """
        self.connections.detach(connection, partial(connection.finish, code))


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
