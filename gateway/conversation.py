"""What an open socket's client says, and the answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import msgspec

from backplane.errors import InvalidId, RedisUnavailable
from backplane.keys import check_id
from backplane.log import Logger
from backplane.settings import Settings
from backplane.trace_context import NO_TRACE, read_trace
from gateway import outgoing, protocol
from gateway.auth import Authenticator
from gateway.chat import Context
from gateway.close_codes import CloseCode
from gateway.connection import Connection
from gateway.errors import ClientError, redis_unavailable
from gateway.frames import Binary, TooLarge
from gateway.identity import Identity, Stated, check_scope, renewed
from gateway.pace import take
from gateway.sender import Sender
from gateway.tasks import TaskDesk
from gateway.topics import Topics, check_topic, keeps_topic

_NAMES = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")
_FORGIVEN_S = 30.0  # since the last message over a limit


class Conversation:
    """Handles the messages of all sockets of a pod.

    Args:
        refused: counts what clients are told they may not do, by error code.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        sender: Sender,
        desk: TaskDesk,
        topics: Topics,
        refused: Counter[str],
        log: Logger,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._sender = sender
        self._desk = desk
        self._topics = topics
        self._refused = refused
        self._log = log
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def sends_in_flight(self) -> set[asyncio.Task[None]]:
        """Sends that wait for Redis; a stopping pod lets them finish."""
        return self._sends

    def on_text(self, connection: Connection, data: bytes) -> None:
        """Deal with one text message; whatever is wrong with it is answered."""
        try:
            message = self._read(connection, data)
            if isinstance(message, protocol.Chat):
                self._chat(connection, message)
            elif isinstance(message, protocol.Cancel):
                self._cancel(connection, message)
            elif isinstance(message, protocol.Input):
                self._input(connection, message)
            elif isinstance(message, protocol.Subscribe):
                self._subscribe(connection, message)
            elif isinstance(message, protocol.Unsubscribe):
                self._unsubscribe(connection, message)
            elif isinstance(message, protocol.Auth):
                self._begin(connection, message.ref, self._renew(connection, message))
            elif isinstance(message, protocol.Ping):
                _answer(connection, "pong", message.ref)
            elif isinstance(message, protocol.Ack):
                self._ack(connection, message)
        except ClientError as error:
            self._tell(connection, error)

    def _read(self, connection: Connection, data: bytes) -> protocol.ClientMessage:
        try:
            message = protocol.parse(data, self._settings.json_depth_max)
        except protocol.BadMessage as error:
            self._pace(connection, error.ref)
            raise
        # An ack that says something new is free: there are as many as the client was sent messages.
        if not (isinstance(message, protocol.Ack) and connection.acked < message.seq <= connection.seq):
            self._pace(connection, message.ref)
        return message

    def _pace(self, connection: Connection, ref: protocol.Ref | None) -> None:
        per_s = self._settings.messages_per_s
        if not per_s:
            return
        now, burst = asyncio.get_running_loop().time(), self._settings.messages_burst
        connection.full_at, wait_s = take(connection.full_at, now, per_s, burst)
        if wait_s:
            detail = f"more than {per_s} messages a second; this one was ignored"
            error = ClientError(429, "rate_limited", detail, retry_after_s=wait_s, limit="messages")
            raise protocol.BadMessage(error, ref)

    def on_bad_frame(self, connection: Connection, event: Binary | TooLarge) -> None:
        """Deal with a message that was skipped; a client that keeps sending such is not worth a socket."""
        if isinstance(event, Binary):
            error = ClientError(400, "not_text", "messages are JSON text; a binary message was ignored")
        else:
            most = self._settings.message_max_bytes
            detail = f"a message of {event.size} bytes was ignored; the limit is {most}"
            error = ClientError(413, "message_too_large", detail)
        self._tell(connection, error)
        connection.bad_frames += 1
        if connection.bad_frames >= self._settings.bad_frames_max:
            connection.close(CloseCode.BAD_FRAME, "too many binary or too large messages")

    def _ack(self, connection: Connection, message: protocol.Ack) -> None:
        if message.seq > connection.seq:
            detail = f"seq {message.seq} was not sent yet; the newest is {connection.seq}"
            raise protocol.BadMessage(ClientError(422, "invalid_field", detail), message.ref)
        connection.ack(message.seq)
        if message.ref is not None:
            _answer(connection, "ack", message.ref, {"seq": message.seq})

    # chat

    def _chat(self, connection: Connection, message: protocol.Chat) -> None:
        identity = connection.identity
        assert identity is not None
        try:
            self._authenticator.check(identity.grant)  # the token may have ended since the socket was opened
            context = _context(identity, message)
        except ClientError as error:
            raise protocol.BadMessage(error, message.ref) from None
        self._begin(connection, message.ref, self._send(connection, identity, context, message))

    async def _send(
        self, connection: Connection, identity: Identity, context: Context, message: protocol.Chat
    ) -> dict[str, Any]:
        accepted = await self._sender.send(identity, context, message)
        connection.strikes = max(0, connection.strikes - 1)
        return accepted.answer

    # cancel

    def _cancel(self, connection: Connection, message: protocol.Cancel) -> None:
        identity = connection.identity
        assert identity is not None
        try:
            self._authenticator.check(identity.grant)
        except ClientError as error:
            raise protocol.BadMessage(error, message.ref) from None
        work = self._desk.cancel(
            identity.grant, _stated(identity), message.task_id, message.client_message_id, message.reason
        )
        self._begin(connection, message.ref, work)

    # input

    def _input(self, connection: Connection, message: protocol.Input) -> None:
        identity = connection.identity
        assert identity is not None
        try:
            self._authenticator.check(identity.grant)
            msgspec.json.decode(message.value)
        except msgspec.DecodeError as error:
            detail = f"value is not JSON: {error}"
            raise protocol.BadMessage(ClientError(400, "not_json", detail), message.ref) from None
        except ClientError as error:
            raise protocol.BadMessage(error, message.ref) from None
        work = self._desk.answer(
            identity.grant, _stated(identity), message.task_id, message.input_id, message.value
        )
        self._begin(connection, message.ref, work)

    # subscribe, unsubscribe

    def _subscribe(self, connection: Connection, message: protocol.Subscribe) -> None:
        identity = connection.identity
        assert identity is not None
        try:
            self._authenticator.check(identity.grant)
        except ClientError as error:
            raise protocol.BadMessage(error, message.ref) from None
        self._begin(connection, message.ref, self._listen(connection, identity, message), "subscribed")

    async def _listen(
        self, connection: Connection, identity: Identity, message: protocol.Subscribe
    ) -> dict[str, Any]:
        check_scope(identity.grant, "listen")
        for topic in message.topics:
            task_id = check_topic(identity.grant, topic)
            if task_id is not None:
                await self._desk.show(identity.grant, _stated(identity, any_session=True), task_id)
        if connection.attached:
            await self._topics.subscribe(connection, identity.tenant_id, message.topics)
        if not connection.attached:  # it has closed meanwhile
            self._topics.gone(connection)
        return {"topics": sorted(connection.topics or ())}

    def _unsubscribe(self, connection: Connection, message: protocol.Unsubscribe) -> None:
        identity = connection.identity
        assert identity is not None
        self._topics.unsubscribe(connection, identity.tenant_id, message.topics)
        topics = sorted(connection.topics or ())
        _answer(connection, "unsubscribed", message.ref, {"topics": topics})

    # auth

    async def _renew(self, connection: Connection, message: protocol.Auth) -> dict[str, Any]:
        grant = await self._authenticator.grant(message.token)
        before = connection.identity
        if before is not None and connection.attached:
            connection.renew(renewed(before, grant))
            lost = [one for one in connection.topics or () if not keeps_topic(one, before.grant, grant)]
            self._topics.unsubscribe(connection, before.tenant_id, lost)
        return {"token_expires_at": grant.expires_at}

    # What needs Redis or others.

    def _begin(
        self,
        connection: Connection,
        ref: protocol.Ref | None,
        work: Coroutine[Any, Any, dict[str, Any]],
        kind: protocol.Kind = "ack",
    ) -> None:
        most = self._settings.sends_in_flight_max
        if connection.in_flight >= most:
            work.close()
            detail = f"{most} messages wait for their ack already"
            raise protocol.BadMessage(ClientError(429, "too_many_in_flight", detail, retry_after_s=1), ref)
        connection.in_flight += 1
        task = asyncio.create_task(self._do(connection, ref, work, kind))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _do(
        self,
        connection: Connection,
        ref: protocol.Ref | None,
        work: Coroutine[Any, Any, dict[str, Any]],
        kind: protocol.Kind,
    ) -> None:
        try:
            answer = await work
        except ClientError as error:
            self._tell(connection, error, ref)
        except RedisUnavailable:
            self._tell(connection, redis_unavailable(), ref)
        except Exception:  # noqa: BLE001  # a task's boundary: the client is told, the traceback is logged
            self._log.exception("message_failed", connection_id=connection.connection_id)
            detail = "a mistake of ours; it has been logged"
            self._tell(connection, ClientError(500, "internal_error", detail), ref)
        else:
            if ref is not None or kind != "ack":
                _answer(connection, kind, ref, answer)
        finally:
            connection.in_flight -= 1

    def _tell(self, connection: Connection, error: ClientError, ref: protocol.Ref | None = None) -> None:
        self._refused[error.error_code] += 1
        if connection.identity is not None:
            connection.say(outgoing.error(connection.identity, time.time(), error, ref))
        if error.error_code == "rate_limited":
            self._strike(connection)

    def _strike(self, connection: Connection) -> None:
        """Close the socket of a client that goes on although it was told to wait."""
        now = asyncio.get_running_loop().time()
        connection.strikes = connection.strikes + 1 if now - connection.struck_at < _FORGIVEN_S else 1
        connection.struck_at = now
        if connection.strikes >= self._settings.rate_limit_patience:
            connection.close(
                CloseCode.RATE_LIMITED, "over a rate limit, again and again; wait before you return"
            )


def _context(identity: Identity, message: protocol.Chat) -> Context:
    agent_id = _agent_of(message, identity)
    # Not the upgrade's: a proxy may add one to each, and all that is said for hours would be one trace.
    traceparent, tracestate = NO_TRACE
    if message.traceparent is not None:
        traceparent, tracestate = read_trace(message.traceparent, message.tracestate)
    source = {"X-Request-Source": "websocket"}
    return Context(agent_id, traceparent=traceparent, headers=source, tracestate=tracestate)


def _stated(identity: Identity, *, any_session: bool = False) -> Stated:
    session_id = None if any_session else identity.session_id
    return Stated(identity.tenant_id, identity.tenant_tier, session_id, identity.user_id, None, _NAMES)


def _agent_of(message: protocol.Chat, identity: Identity) -> str:
    agent_id = message.agent_id or identity.agent_id
    if agent_id is None:
        detail = "agent_id is needed, in the message or when connecting"
        raise ClientError(422, "missing_id", detail)
    try:
        return check_id(agent_id, "agent_id")
    except InvalidId as error:
        raise ClientError(422, "invalid_id", str(error)) from None


def _answer(
    connection: Connection,
    kind: protocol.Kind,
    ref: protocol.Ref | None,
    data: dict[str, object] | None = None,
) -> None:
    if connection.identity is not None:
        connection.say(outgoing.answer(connection.identity, time.time(), kind, ref, data or {}))
