"""What reads requests for event streams, and what is posted to them: more of `tests.fuzz.targets`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from backplane.keys import is_id
from backplane.messages import Message, timestamp, to_entry
from backplane.position import Batch
from backplane.session_log import Resumed, Running, SessionLog
from backplane.task import Found
from backplane.tasks import Tasks
from gateway import outgoing
from gateway.chat import ChatBody, Context, question_entry
from gateway.encoders.event_id import EventId, format_event_id, parse_event_id
from gateway.errors import ERROR_CODES, ClientError
from gateway.event_request import EventRequest, read_request
from gateway.event_start import EventStart, Start
from gateway.identity import ANYONE, Grant, Identity, Stated
from gateway.problem import problem_body
from gateway.sender import Accepted, Sender
from gateway.tasks import TaskDesk
from gateway.text_stream import chunk_message, envelope
from tests.fuzz.examples import RUNS, TENANT
from tests.fuzz.mutator import mutated
from tests.fuzz.oracles import read_json, unless_too_deep
from tests.fuzz.reading import Reader, expand

Target = Callable[[bytes], None]
T = TypeVar("T")

IDENTITY = Identity(TENANT, "free", "s-1", "ann@example.org", "sales", ANYONE)
NOW = 1_769_860_800.0
TASK = "t-1"
SECRET = "sikrit"
"""Stands in the seeds wherever a client can put a token."""

_CURSOR = "e1:2"
_PATHS: tuple[dict[str, str], ...] = ({}, {}, {}, {"chat_id": "c-1"})
_FORMATS = ("native", "ag-ui", "ai-sdk")
_REFUSED = {400, 404, 422}


def event_request(data: bytes) -> None:
    """A request for a stream: a stream that a client can read, or refused with a code that is documented.

    The first bytes choose the method, the address and what the session has; then come the query and, each in
    a line, the headers.
    """
    reader = Reader(data)
    method, more = reader.pick(("GET", "GET", "POST", "HEAD")), reader.pick(_PATHS)
    resumed = _resumed(reader.below(3))
    query, *lines = reader.rest().split(b"\n")
    request = _request(method, more, query, lines)
    try:
        asked = read_request(request)
    except ClientError as error:
        _check_refusal(error, SECRET)
        return
    except HTTPException as error:
        _check_method(error)
        return
    _check_request(asked, request)
    _check_start(request, asked, None if method == "GET" else _posted(asked.format), resumed)


def event_body(data: bytes) -> None:
    """What is posted for a stream, as any bytes."""
    _post(expand(data))


def event_json(data: bytes) -> None:
    """As `event_body`, of bodies that were right once."""
    _post(mutated(data, RUNS))


@unless_too_deep
def _post(body: bytes) -> None:
    for kind in _FORMATS[1:]:
        request = _request("POST", {}, f"format={kind}".encode(), [])
        for number in range(3):
            _check_start(request, read_request(request), body, _resumed(number))


def _request(method: str, more: Mapping[str, str], query: bytes, lines: list[bytes]) -> Request:
    """As the HTTP server and the routes hand it over."""
    pairs = [line.partition(b":")[::2] for line in lines]
    headers = [(name.strip().lower(), value.strip()) for name, value in pairs if name.strip()]
    path_params = {"session_id": IDENTITY.session_id, **more}
    scope = {"type": "http", "method": method, "path": "/", "query_string": query, "headers": headers}
    return Request({**scope, "path_params": path_params, "http_version": "1.1"})


def _check_refusal(error: ClientError, unsaid: str = "\0") -> None:
    assert error.status in _REFUSED, error.status
    assert error.error_code in ERROR_CODES
    assert unsaid not in f"{error} {error.detail}"
    assert read_json(problem_body(error.status, error.error_code, error.detail))["status"] == error.status


def _check_method(error: HTTPException) -> None:
    assert (error.status_code, "GET" in (error.headers or {})["Allow"]) == (405, True)


def _check_request(asked: EventRequest, request: Request) -> None:
    assert asked.format in _FORMATS
    given = request.query_params
    if asked.last is not None:
        said = (request.headers.get("last-event-id"), given.get("cursor"), given.get("last_event_id"))
        assert format_event_id(asked.last) in said
    assert asked.token is None or asked.token in (given.get("token"), *_credentials(request))
    assert asked.stated.session_id == IDENTITY.session_id
    for name, value in zip(("tenant_id", "tenant_tier"), asked.stated[:2], strict=True):
        header = request.headers.get(f"x-{name.replace('_', '-')}")
        assert value in (given.get(name), header)
        assert None in (given.get(name), header) or given[name] == header


def _credentials(request: Request) -> list[str]:
    return [value.partition(" ")[2].strip() for value in request.headers.getlist("authorization")]


# Where it begins, and what is sent.


class _Answers:
    """A session with one task, which knows nothing of Redis."""

    async def belongs(self, *_whose: str) -> bool:
        return True

    async def callback_list(self, *_whose: str) -> str:
        return "list"

    async def newest(self, *_whose: str) -> tuple[str, str]:
        return TASK, _CURSOR

    async def find(self, _tenant_id: str, task_id: str) -> Found | None:
        assert msgspec.json.encode(task_id)
        fields = {"session_id": IDENTITY.session_id, "cursor": _CURSOR}
        return Found("list", fields) if task_id == TASK else None

    async def answer(
        self, grant: Grant, stated: Stated, task_id: str, input_id: str, value: msgspec.Raw
    ) -> dict[str, Any]:
        assert (grant, stated.session_id) == (ANYONE, IDENTITY.session_id)
        assert is_id(input_id)
        read_json(bytes(value))
        if task_id != TASK:
            raise ClientError(404, "unknown_task", "there is no such task")
        return {}

    async def send(self, identity: Identity, context: Context, chat: ChatBody) -> Accepted:
        assert (identity, context.agent_id) == (IDENTITY, IDENTITY.agent_id)
        assert 1 <= len(chat.message) <= 4000
        assert chat.client_message_id is None or 1 <= len(chat.client_message_id) <= 128
        assert question_entry(identity, context, chat, TASK, NOW)
        return Accepted({"task_id": TASK, "cursor": _CURSOR}, ())


_STUB = _Answers()
_START = EventStart(
    cast("SessionLog", _STUB), cast("Tasks", _STUB), cast("Sender", _STUB), cast("TaskDesk", _STUB)
)


def _done(work: Awaitable[T]) -> T:
    """The result of what has nothing to wait for."""
    steps = cast("Generator[Any, None, T]", work.__await__())
    try:
        next(steps)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("it waits")


def _check_start(request: Request, asked: EventRequest, body: bytes | None, resumed: Resumed) -> None:
    try:
        start = _done(_START.find(request, asked, IDENTITY, body))
    except ClientError as error:
        _check_refusal(error)
        return
    assert start is not None
    assert start.reread is None or 0 <= start.reread < 10**16
    assert len(start.has) <= 8
    _check_stream(start, asked, resumed)


def _check_stream(start: Start, asked: EventRequest, resumed: Resumed) -> None:
    """Its head and all that is written are what a client can read."""
    for name, value in start.headers:
        assert f"{name}{value}".isprintable()
        assert f"{name}{value}".isascii()
    framing = start.framing(resumed)
    ack = outgoing.message(IDENTITY, NOW, "connection_ack", {"active_tasks": [], "cursor": _CURSOR})
    written = framing.welcome(ack, _CURSOR, 1000)
    written += framing.log("e1", resumed.start + 1, _ENTRIES[resumed.start :])
    written += framing.message(_CHUNK) + framing.beat() + framing.end(comes_back=True)
    for event in _unchunked(written).decode().split("\n\n"):
        fields = [line.partition(":")[::2] for line in event.split("\n") if line]
        assert {name for name, _ in fields} <= {"", "id", "data", "retry", "event"}, fields
        _check_event({name: value.removeprefix(" ") for name, value in fields if name}, asked)


def _check_event(fields: dict[str, str], asked: EventRequest) -> None:
    if "id" in fields:
        assert isinstance(parse_event_id(fields["id"]), EventId)
    if fields.get("data", "[DONE]") != "[DONE]":
        assert isinstance(read_json(fields["data"].encode()), dict)
    assert fields.get("data") != "[DONE]" or asked.format == "ai-sdk"


_SIZE = re.compile(rb"([0-9a-f]+)\r\n")


def _unchunked(data: bytes) -> bytes:
    """RFC 9112, 7.1."""
    content, at, size = b"", 0, -1
    while size:
        match = _SIZE.match(data, at)
        assert match is not None, data[at : at + 40]
        size, begin = int(match[1], 16), match.end()
        assert data[begin + size : begin + size + 2] == b"\r\n"
        content, at = content + data[begin : begin + size], begin + size + 2
    assert at == len(data)
    return content


def _entry(kind: str, **data: Any) -> bytes:
    told: Any = {"task_id": TASK, **data}
    base = (timestamp(NOW), kind, TASK, IDENTITY.session_id, TENANT, "free")
    return to_entry(Message(*base, told, {}))


_ENTRIES = [
    question_entry(IDENTITY, Context("sales"), ChatBody("why?"), "t-0", NOW),
    _entry("task_update", status="working", step="think", message="m"),
    question_entry(IDENTITY, Context("sales"), ChatBody("and now?"), TASK, NOW),
    _entry(
        "input_required", input_id="i-1", prompt="Which?", schema={"type": "string"}, status="input_required"
    ),
    _entry("agent_response", response="So much and no more", sources=[], agent_info={}, status="completed"),
]
_CHUNK = chunk_message(envelope("s-1", TENANT, "free"), TASK, 1, "text", 0, b"So ", NOW, snapshot=False)
_RUNNING = Running(TASK, "working", "sales", "1", "1769860800000", "1769860860000")


def _resumed(number: int) -> Resumed:
    """The session, for one who has nothing of it, some of it, or what is no more."""
    start = (0, 2, 4)[number]
    page = Batch("e1", start + 1, _ENTRIES[start:])
    running = (_RUNNING,) if number < 2 else ()
    return Resumed(("fresh", "replayed", "reset")[number], start, len(_ENTRIES), 1, 7, page, running)


def _posted(kind: str) -> bytes:
    return msgspec.json.encode(RUNS[0 if kind == "ag-ui" else -1])


EVENT_TARGETS: Mapping[str, Target] = MappingProxyType(
    {"event_request": event_request, "event_body": event_body, "event_json": event_json}
)
