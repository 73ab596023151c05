"""Where an event stream begins, by what its client has; and what is sent first for one that posts a message.

A stream of our own messages begins where a socket would. Those of other protocols are told by an encoder,
which has to know what its client was told of running tasks: it is given their messages once more, from the
first of them on, and takes those that the client has as a reminder. Whether the log still reaches back to the
client is judged by the client's own position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from starlette.requests import Request

from backplane.errors import InvalidCursor, NotYours
from backplane.position import Position, parse_cursor
from backplane.session_log import Resumed, SessionLog
from backplane.task import send_name
from backplane.tasks import Tasks
from gateway.chat import ChatBody, invalid_field
from gateway.encoders import fields
from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.ai_sdk import AiSdkEncoder
from gateway.encoders.encoder import Encoder
from gateway.encoders.event_id import EventId
from gateway.encoders.inbound import Inbound, read_ag_ui, read_ai_sdk
from gateway.errors import ClientError
from gateway.event_framing import NATIVE, NATIVE_PLAIN, Encoded, EventFraming
from gateway.event_request import EventRequest
from gateway.identity import Identity, check_scope, valid_id
from gateway.opening import read_have
from gateway.send_endpoint import context_of
from gateway.sender import Sender
from gateway.tasks import TaskDesk
from gateway.text_stream import Have

Headers = tuple[tuple[str, str], ...]

_TOO_LATE = frozenset({"input_expired", "input_not_wanted"})
_NOTHING: Mapping[str, Have] = MappingProxyType({})


class Start(NamedTuple):
    """Where a stream begins.

    Attributes:
        cursor: see `Opening.attach`.
        framing: makes its framing, once it is known where it stands.
        headers: of the response.
        marks: what it was sent counts as sent to the session: all is told.
        chunks: answers are sent while they are streamed.
        has, reread: see `Opening.attach`.
    """

    cursor: Position | None
    framing: Callable[[Resumed], EventFraming]
    headers: Headers = ()
    marks: bool = True
    chunks: bool = True
    has: Mapping[str, Have] = _NOTHING
    reread: int | None = None


class EventStart:
    """Finds out where streams begin."""

    def __init__(self, session_log: SessionLog, tasks: Tasks, sender: Sender, desk: TaskDesk) -> None:
        self._session_log = session_log
        self._tasks = tasks
        self._sender = sender
        self._desk = desk

    async def find(
        self, request: Request, asked: EventRequest, identity: Identity, body: bytes | None
    ) -> Start | None:
        """Find out; what was posted is sent.

        Args:
            body: of a POST.

        Returns:
            None if there is nothing to be told of.

        Raises:
            ClientError: the request cannot be carried out.
            NotYours: the session belongs to another user.
            RedisUnavailable: Redis did not answer.
        """
        if asked.format == "native":
            return _native(asked)
        if body is not None:
            return await self._post(request, asked, identity, body)
        if asked.format == "ai-sdk":
            return await self._ai_sdk(asked, identity)
        return await self._ag_ui(asked, identity)

    # POST

    async def _post(self, request: Request, asked: EventRequest, identity: Identity, body: bytes) -> Start:
        posted = _read(read_ag_ui if asked.format == "ag-ui" else read_ai_sdk, body)
        if posted.answers:
            return await self._answer(asked, identity, posted)
        check_scope(identity.grant, "chat")
        if identity.agent_id is None:
            raise ClientError(400, "missing_id", "X-Agent-ID or agent_id is needed")
        said = {"message": posted.message, "client_message_id": posted.client_message_id}
        try:
            chat = msgspec.convert(said, ChatBody)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from None
        accepted = await self._sender.send(identity, context_of(request, identity.agent_id), chat)
        task_id = accepted.answer["task_id"]
        start = _of_task(asked, task_id, accepted.answer["cursor"], None, _posted(asked, posted, task_id))
        return start._replace(headers=(*start.headers, *accepted.headers))

    async def _answer(self, asked: EventRequest, identity: Identity, posted: Inbound) -> Start:
        """Pass on what the user says to what an agent asked; the stream is the rest of its task's."""
        task_id = posted.answers[0].task_id
        await self._check_nothing_new(identity, posted, task_id)
        given_up = []
        for answer in posted.answers:
            value = msgspec.Raw(fields.to_json(answer.value))
            try:
                await self._desk.answer(identity.grant, asked.stated, task_id, answer.input_id, value)
            except ClientError as error:
                # A client has to say something to every question before it may go on, also to one whose time
                # is over or that another device has answered.
                if not answer.given_up or error.error_code not in _TOO_LATE:
                    raise
                given_up.append(answer.input_id)
        cursor = await self._before(identity, task_id)
        return _of_task(asked, task_id, cursor, None, _posted(asked, posted, task_id, given_up))

    async def _check_nothing_new(self, identity: Identity, posted: Inbound, task_id: str) -> None:
        """Refuse a message that comes with an answer: to leave it out in silence would lose it."""
        if posted.client_message_id is None:
            return
        name = send_name("message", identity.session_id, posted.client_message_id)
        if await self._tasks.named(identity.tenant_id, name) != task_id:
            detail = "a message cannot be sent with an answer; send the answer first, without it"
            raise ClientError(422, "invalid_field", detail)

    # GET

    async def _ag_ui(self, asked: EventRequest, identity: Identity) -> Start:
        def encoder(resume: EventId | None) -> Encoder:
            return AgUiEncoder(identity.session_id, task_id=asked.task_id, resume=resume, replays=True)

        if asked.task_id is None:
            return _encoded(asked, encoder, marks=True)
        cursor = await self._before(identity, asked.task_id)
        return _of_task(asked, asked.task_id, cursor, asked.last, encoder)

    async def _ai_sdk(self, asked: EventRequest, identity: Identity) -> Start | None:
        begun = [] if asked.last is None else list(asked.last.have)
        task_id, cursor = asked.task_id or next(iter(begun), None), ""
        if task_id is None:
            listed = await self._session_log.callback_list(identity.tenant_id, identity.session_id)
            newest = await self._tasks.newest(listed, identity.session_id)
            if newest is None:
                # Whoever gets a stream is asked who he is when that is attached.
                if not await self._session_log.belongs(listed, identity.session_id, identity.owner):
                    raise NotYours
                return None
            task_id, cursor = newest
        elif task_id not in begun:
            cursor = await self._before(identity, task_id)
        of_task = task_id

        def encoder(resume: EventId | None) -> Encoder:
            known = _knows_reset_step(asked)
            return AiSdkEncoder(task_id=of_task, resume=resume, reset_step=known, replays=True)

        return _of_task(asked, of_task, cursor, asked.last, encoder)

    async def _before(self, identity: Identity, task_id: str) -> str:
        """The session's cursor before a task."""
        valid_id(task_id, "task_id")
        found = await self._tasks.find(identity.tenant_id, task_id)
        if found is None or found.fields.get("session_id") != identity.session_id:
            raise ClientError(404, "unknown_task", "the session has no such task, or it ended too long ago")
        return found.fields.get("cursor", "")


def _native(asked: EventRequest) -> Start:
    framing = NATIVE if asked.chunked else NATIVE_PLAIN
    cursor = None if asked.last is None else parse_cursor(asked.last.cursor)
    has = read_have(asked.have) if asked.chunks else _NOTHING
    return Start(cursor, lambda _resumed: framing, chunks=asked.chunks, has=has)


def _knows_reset_step(asked: EventRequest) -> bool:
    return asked.version.partition(".")[0] == "7"


def _posted(
    asked: EventRequest, posted: Inbound, task_id: str, given_up: Collection[str] = ()
) -> Callable[[EventId | None], Encoder]:
    """Makes the encoder of a response to what was posted."""

    def encoder(_resume: EventId | None) -> Encoder:
        if asked.format == "ai-sdk":
            return AiSdkEncoder(
                task_id=task_id,
                reset_step=_knows_reset_step(asked),
                message=posted.messages[0] if posted.messages else None,
                replays=True,
                given_up=given_up,
            )
        return AgUiEncoder(
            posted.thread_id,
            task_id=task_id,
            run_id=posted.run_id,
            messages=posted.messages,
            protocol_version=posted.protocol_version,
            replays=True,
            given_up=given_up,
        )

    return encoder


def _of_task(
    asked: EventRequest,
    task_id: str,
    before: str,
    last: EventId | None,
    encoder: Callable[[EventId | None], Encoder],
) -> Start:
    """The stream of one task.

    Args:
        before: the session's cursor before the task, if it is known.
        last: what the client has; if that is nothing of the task, it is told all of it.
    """
    if last is not None and task_id in last.have:
        return _encoded(asked, encoder, task_id)
    try:
        cursor = parse_cursor(before)
    except InvalidCursor:
        cursor = None
    return _encoded(asked._replace(last=None), encoder, task_id, cursor)


def _encoded(
    asked: EventRequest,
    encoder: Callable[[EventId | None], Encoder],
    task_id: str | None = None,
    cursor: Position | None = None,
    *,
    marks: bool = False,
) -> Start:
    last, reread = asked.last, None
    if last is not None:
        cursor = parse_cursor(last.cursor)
        reread = parse_cursor(last.replay_from).seq

    def framing(resumed: Resumed) -> EventFraming:
        resume = last
        if resume is not None and cursor is not None and resumed.status != "reset":
            # The epoch may be another one by now, in which the client's position stands too.
            resume = resume._replace(cursor=str(Position(resumed.page.epoch, cursor.seq)))
        over = task_id is not None and all(task.task_id != task_id for task in resumed.running)
        return Encoded(
            encoder(resume), chunked=asked.chunked, told=resumed.start, last=resumed.head if over else None
        )

    made = AiSdkEncoder if asked.format == "ai-sdk" else AgUiEncoder
    return Start(cursor, framing, made.headers, marks, reread=reread)


def _read(reader: Callable[[bytes], Inbound], body: bytes) -> Inbound:
    try:
        return reader(body)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except msgspec.DecodeError as error:
        raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ClientError(400, "not_json", "the body is not UTF-8") from None
    except ValueError as error:
        raise ClientError(422, "invalid_field", str(error)) from None
