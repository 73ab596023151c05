"""What an open socket's client says, and the answers."""

from __future__ import annotations

import asyncio
import time

from backplane.errors import InvalidId
from backplane.keys import check_id
from backplane.log import Logger
from backplane.settings import Settings
from gateway import outgoing, protocol
from gateway.auth import Identity
from gateway.chat import Context
from gateway.close_codes import CloseCode
from gateway.connection import Connection
from gateway.errors import ClientError
from gateway.frames import Binary, TooLarge
from gateway.sender import Sender


class Conversation:
    """Handles the messages of all sockets of a pod."""

    def __init__(self, settings: Settings, sender: Sender, log: Logger) -> None:
        self._settings = settings
        self._sender = sender
        self._log = log
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def sends_in_flight(self) -> set[asyncio.Task[None]]:
        """Sends that wait for Redis; a stopping pod lets them finish."""
        return self._sends

    def on_text(self, connection: Connection, data: bytes) -> None:
        """Deal with one text message; whatever is wrong with it is answered."""
        try:
            message = protocol.parse(data)
            if isinstance(message, protocol.Chat):
                self._chat(connection, message)
            elif isinstance(message, protocol.Ping):
                _answer(connection, "pong", message.ref)
            elif isinstance(message, protocol.Ack):
                self._ack(connection, message)
        except ClientError as error:
            _tell(connection, error)

    def on_bad_frame(self, connection: Connection, event: Binary | TooLarge) -> None:
        """Deal with a message that was skipped; a client that keeps sending such is not worth a socket."""
        if isinstance(event, Binary):
            error = ClientError(400, "not_text", "messages are JSON text; a binary message was ignored")
        else:
            most = self._settings.message_max_bytes
            detail = f"a message of {event.size} bytes was ignored; the limit is {most}"
            error = ClientError(413, "message_too_large", detail)
        _tell(connection, error)
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
            context = Context(_agent_of(message, identity), headers={"X-Request-Source": "websocket"})
        except ClientError as error:
            raise protocol.BadMessage(error, message.ref) from None
        most = self._settings.sends_in_flight_max
        if connection.in_flight >= most:
            detail = f"{most} messages wait for their ack already"
            raise protocol.BadMessage(
                ClientError(429, "too_many_in_flight", detail, retry_after_s=1), message.ref
            )
        connection.in_flight += 1
        task = asyncio.create_task(self._send(connection, identity, context, message))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send(
        self, connection: Connection, identity: Identity, context: Context, message: protocol.Chat
    ) -> None:
        try:
            accepted = await self._sender.send(identity, context, message)
        except ClientError as error:
            _tell(connection, error, message.ref)
        except Exception:  # noqa: BLE001  # a task's boundary: the client is told, the traceback is logged
            self._log.exception("send_failed", session_id=identity.session_id)
            detail = "a mistake of ours; it has been logged"
            _tell(connection, ClientError(500, "internal_error", detail), message.ref)
        else:
            if message.ref is not None:
                _answer(connection, "ack", message.ref, accepted)
        finally:
            connection.in_flight -= 1


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
        connection.write(outgoing.answer(connection.identity, time.time(), kind, ref, data or {}))


def _tell(connection: Connection, error: ClientError, ref: protocol.Ref | None = None) -> None:
    if connection.identity is not None:
        connection.write(outgoing.error(connection.identity, time.time(), error, ref))
