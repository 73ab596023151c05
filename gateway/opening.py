"""Who may open a connection to a session, and what it is told first; for sockets and event streams alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from uuid import uuid4

from backplane.errors import InvalidCursor
from backplane.position import Position, parse_cursor
from backplane.session_log import Resumed, SessionLog
from backplane.settings import Settings
from gateway import outgoing
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.errors import ClientError, redis_unavailable
from gateway.health import Health
from gateway.identity import Identity, Stated, check_scope
from gateway.listener import Listener
from gateway.metrics import PodMetrics
from gateway.open_connections import OpenConnections
from gateway.tasks import active_task
from gateway.text_stream import Have, parse_have

_NOTHING: Mapping[str, Have] = MappingProxyType({})


class Opening:
    """Lets connections in, step by step."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        admission: Admission,
        session_log: SessionLog,
        health: Health,
        connections: OpenConnections,
        metrics: PodMetrics | None = None,
    ) -> None:
        self._metrics = metrics or PodMetrics(settings)
        self._settings = settings
        self._authenticator = authenticator
        self._admission = admission
        self._session_log = session_log
        self._health = health
        self._connections = connections

    async def knock(self, connection: Listener, forwarded: str | None) -> None:
        """See `Admission.knock`.

        Raises:
            ClientError: likewise, and 503 the pod is about to stop.
        """
        self._check_stays()
        await self._admission.knock(connection, forwarded)

    async def identify(self, connection: Listener, token: str | None, stated: Stated) -> Identity:
        """Find out whose a connection is.

        Raises:
            ClientError: it may not be opened, or not now.
        """
        identity = await self._authenticator.identify(token, stated)
        check_scope(identity.grant, "listen")
        connection.identity = identity
        connection.connection_id = uuid4().hex
        return identity

    async def attach(
        self,
        connection: Listener,
        identity: Identity,
        cursor: Position | None,
        accept: Callable[[Resumed], bool],
        has: Mapping[str, Have] = _NOTHING,
        reread: int | None = None,
    ) -> None:
        """Put a connection on its session, with a ``connection_ack`` first.

        Args:
            connection: has joined (see `Admission.join`).
            cursor: what the client has; None for what no connection of the session has been sent.
            accept: called once, right before the first message; False if the client has gone.
            has: see `Hub.attach`.
            reread: see `SessionLog.resume`.

        Raises:
            ClientError: it may not be opened now.
            NotYours: the session belongs to another user.
            RedisUnavailable: Redis did not answer.
        """
        began = time.monotonic()
        session = await self._session_log.locate(identity.tenant_id, identity.session_id)
        if self._health.deaf_to(session):
            raise redis_unavailable()

        def greet(resumed: Resumed) -> bool:
            self._check_stays()  # the log was asked meanwhile
            self._authenticator.check(identity.grant)  # and it may have been revoked
            if not accept(resumed):
                return False
            self._greet(connection, identity, resumed)
            self._metrics.resumes.of("unknown" if resumed.unknown else resumed.status).value += 1
            self._metrics.opening.of(connection.kind).observe(time.monotonic() - began)
            return True

        feed = await self._connections.hub.attach(
            session, connection, cursor, greet, identity.owner, has, reread
        )
        if feed is None:
            return
        connection.feed = feed
        if self._settings.session_policy == "replace":
            await self._session_log.replace_older(session, connection.generation)

    async def join(self, connection: Listener, identity: Identity) -> None:
        """See `Admission.join`."""
        await self._admission.join(connection, identity)

    def _check_stays(self) -> None:
        if self._health.draining:
            detail = "this pod is about to stop; connect again"
            raise ClientError(503, "draining", detail, retry_after_s=1)

    def _greet(self, connection: Listener, identity: Identity, resumed: Resumed) -> None:
        now = time.time()
        epoch = resumed.page.epoch
        cursor = str(Position(epoch, resumed.start))
        data = {
            "connection_id": connection.connection_id,
            "session_id": identity.session_id,
            "tenant_id": identity.tenant_id,
            "tenant_tier": identity.tenant_tier,
            "server_time": now,
            "heartbeat_s": self._settings.heartbeat_s,
            "cursor": cursor,
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
        connection.welcome(outgoing.message(identity, now, "connection_ack", data), cursor)
        self._connections.enter(connection, identity)

    def _limits(self, identity: Identity) -> dict[str, object]:
        settings = self._settings
        return {
            "message_max_bytes": settings.message_max_bytes,
            "sends_in_flight_max": settings.sends_in_flight_max,
            "messages_per_s": settings.messages_per_s,
            "messages_burst": settings.messages_burst,
            "token_expires_at": identity.grant.expires_at,
            "auth_grace_s": settings.auth_grace_s,
        }


def read_cursor(text: str | None) -> Position | None:
    """A client's cursor, if it gave one.

    Raises:
        ClientError: 400.
    """
    try:
        return parse_cursor(text) if text else None
    except InvalidCursor as error:
        raise ClientError(400, "invalid_cursor", str(error)) from None


def read_have(text: str | None) -> Mapping[str, Have]:
    """What a client says that it has of answers, if it says something.

    Raises:
        ClientError: 400.
    """
    try:
        return parse_have(text) if text else _NOTHING
    except ValueError as error:
        raise ClientError(400, "invalid_field", str(error)) from None
