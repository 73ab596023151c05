"""What reads strangers' bytes, as functions that raise only when something is wrong.

Each takes any bytes. What is documented to come of bad input (an exception, an event, a dead letter) is let
pass; everything else is an `AssertionError` or the product's own exception. `tests.fuzz.run` looks for inputs
that raise; `tests/unit/test_fuzz_corpus.py` replays those that were worth keeping.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote
from uuid import UUID

from backplane.appending import ARGUMENTS_AN_ENTRY
from backplane.errors import ConfigurationError, InvalidCursor
from backplane.keys import TIERS, is_id
from backplane.messages import with_position
from backplane.position import Batch, parse_cursor
from backplane.router.dispatch import REASONS
from backplane.router.transfer import judge
from backplane.session_log import Begun, Live, Piece, Replaced, StreamEnd, parse_push
from backplane.settings import ENV_PREFIX, Settings, load
from backplane.task import ENDED
from gateway import handshake, outgoing, protocol
from gateway.chat import Context, build_action, decode_body, fingerprint, timeout_s
from gateway.errors import ERROR_CODES, ClientError
from gateway.frames import MAX_CONTROL_BYTES, Binary, Close, Event, FrameDecoder, Ping, Pong, Text, TooLarge
from gateway.identity import ANYONE, Identity
from gateway.problem import problem_body
from tests.fuzz import http_connection
from tests.fuzz.event_targets import EVENT_TARGETS
from tests.fuzz.examples import CALLBACKS, MESSAGES, TENANT
from tests.fuzz.mutator import mutated
from tests.fuzz.oracles import accept_key, frame_events, read_json, read_loosely, unless_too_deep
from tests.fuzz.reading import Reader, cut, expand

Target = Callable[[bytes], None]

AT = "2026-01-31T12:00:00.000Z"
NOW = 1_769_860_800.0
IDENTITY = Identity(TENANT, "free", "s-1", "ann@example.org", "sales", ANYONE)


# WebSocket frames.

MAX_MESSAGE: Final = 200
MAX_SKIP: Final = 600
_LONGEST_STREAM = 8 * MAX_SKIP
_MOST_BUFFERED = MAX_MESSAGE + 6 + MAX_CONTROL_BYTES


def frames(data: bytes) -> None:
    """The decoder: bounded, the same however the bytes are cut, and of one mind with another library."""
    reader = Reader(data)
    sizes = [reader.byte() for _ in range(reader.below(8))]
    stream = expand(reader.rest())[:_LONGEST_STREAM]
    whole = FrameDecoder(MAX_MESSAGE, MAX_SKIP)
    expected = whole.feed(stream)
    _check_events(expected, whole)
    pieces = FrameDecoder(MAX_MESSAGE, MAX_SKIP)
    events: list[Event] = []
    for piece in cut(stream, sizes):
        closed = pieces.closed
        new = pieces.feed(piece)
        assert not (closed and new), "an event after the end"
        assert pieces.buffered_bytes <= _MOST_BUFFERED, pieces.buffered_bytes
        events += new
    assert events == expected
    assert (pieces.closed, _failure(pieces)) == (whole.closed, _failure(whole))
    assert pieces.buffered_bytes == whole.buffered_bytes
    theirs, legal = frame_events(stream, MAX_MESSAGE)
    closes = any(isinstance(event, Close) for event in expected)
    assert theirs[: len(expected)] == (expected[:-1] if closes and not legal else expected)
    if whole.failure is None and not closes:
        assert len(theirs) == len(expected)
        assert legal


def _failure(decoder: FrameDecoder) -> tuple[int, str] | None:
    return None if decoder.failure is None else (decoder.failure.code, str(decoder.failure))


def _check_events(events: list[Event], decoder: FrameDecoder) -> None:
    for event in events:
        if isinstance(event, Text):
            event.data.decode()
            assert len(event.data) <= MAX_MESSAGE
        elif isinstance(event, TooLarge):
            assert MAX_MESSAGE < event.size <= MAX_SKIP
        elif isinstance(event, Binary):
            assert event.size <= MAX_SKIP
        elif isinstance(event, Ping | Pong):
            assert len(event.data) <= MAX_CONTROL_BYTES
    assert not any(isinstance(event, Close) for event in events[:-1])
    ended = any(isinstance(event, Close) for event in events[-1:])
    assert decoder.closed == (ended or decoder.failure is not None)
    if decoder.closed:
        assert decoder.buffered_bytes == 0
        assert not decoder.feed(b"\x89\x80\0\0\0\0")


# The opening handshake.

SECRET = b"sikrit"
"""Stands in the seeds wherever a client can put a token."""


def handshake_request(data: bytes) -> None:
    """The upgrade request: taken as another library takes it, or refused without repeating what it said."""
    data = expand(data)
    try:
        request = handshake.parse(data)
    except handshake.HandshakeError as error:
        _check_refusal(error)
        return
    shown = repr(request)
    for path in (request.raw_path, request.path):
        shown = shown.replace(repr(path)[1:-1], "")
    assert SECRET.decode() not in shown
    assert request.path == unquote(request.raw_path, errors="strict")
    query = data.split(b" ")[1].decode().partition("?")[2]
    assert request.query == dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
    for text in (request.path, *request.query, *request.query.values()):
        assert not any(unicodedata.category(character) == "Cc" for character in text)
    for subprotocol in (None, *request.subprotocols):
        lines = _head(handshake.accept_response(request, subprotocol))
        assert len(lines) == 4 + (subprotocol is not None), lines
        assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    key = accept_key(data)
    assert key is None or f"Sec-WebSocket-Accept: {key}" in _head(handshake.accept_response(request, None))


def _check_refusal(error: handshake.HandshakeError) -> None:
    assert SECRET.decode() not in f"{error} {error.detail} {error.headers} {error.__context__}"
    assert error.error_code in ERROR_CODES
    assert 400 <= error.status < 500
    body = problem_body(error.status, error.error_code, error.detail)
    response = handshake.refuse_response(error.status, list(error.headers), body)
    lines = _head(response[: len(response) - len(body)])
    assert len(lines) == 4 + len(error.headers), lines
    assert f"Content-Length: {len(body)}" in lines
    assert read_json(body)["error_code"] == error.error_code
    if error.request is not None:
        assert len(_head(handshake.accept_response(error.request, None))) == 4


def _head(response: bytes) -> list[str]:
    """The lines of a response's head."""
    head, end, rest = response.partition(b"\r\n\r\n")
    assert end
    assert not rest
    lines = head.decode("latin-1").split("\r\n")
    assert not any("\r" in line or "\n" in line or "\0" in line for line in lines)
    return lines


# What clients say.


def client_message(data: bytes) -> None:
    """A socket's message: read, or refused with something that can be answered."""
    _hear(expand(data))


def client_json(data: bytes) -> None:
    """As `client_message` and `chat_body`, of messages that were valid once."""
    message = mutated(data, MESSAGES)
    _hear(message)
    _take(message)


@unless_too_deep
def _hear(data: bytes) -> None:
    loose = read_loosely(data)
    try:
        message = protocol.parse(data)
    except protocol.BadMessage as error:
        _check_bad_message(error)
        return
    assert loose["type"] == type(message).__name__.lower()
    answer = read_json(outgoing.answer(IDENTITY, NOW, "ack", message.ref, {"seq": 1}))
    assert answer["data"].get("ref") == message.ref == loose.get("ref")
    if isinstance(message, protocol.Ack):
        assert message.seq == loose["seq"] >= 0
    elif isinstance(message, protocol.Chat):
        _check_chat(message, loose)


def _check_bad_message(error: protocol.BadMessage) -> None:
    assert 400 <= error.status < 500
    assert error.error_code in ERROR_CODES
    told = read_json(outgoing.error(IDENTITY, NOW, error))
    assert told["type"] == "error"
    assert told["data"]["error"] == error.detail
    assert told["data"].get("ref") == error.ref


def chat_body(data: bytes) -> None:
    """The body of a send: refused, or an action with all that the contract names."""
    _take(expand(data))


@unless_too_deep
def _take(data: bytes) -> None:
    try:
        body = decode_body(data)
    except ClientError as error:
        problem = read_json(problem_body(error.status, error.error_code, error.detail))
    else:
        _check_chat(body, read_loosely(data))
        return
    assert problem["status"] in {400, 422}
    assert problem["error_code"] in ERROR_CODES


_ACTION_KEYS = frozenset(
    (
        "action_id", "action_type", "task_id", "tenant_id", "tenant_tier", "session_id", "execution_context",
        "data", "metadata", "callback_queue", "timeout", "queue_metadata", "timestamp", "message",
        "message_type", "user_info", "max_iterations",
    )
)  # fmt: skip
_CONTEXT_KEYS = frozenset(
    (
        "context_id", "context_type", "tenant_id", "tenant_tier", "session_id", "primary_agent_id", "agents",
        "collections", "metadata", "created_at",
    )
)  # fmt: skip
_QUEUE_KEYS = frozenset(("enqueued_at", "target_domain", "queue_name", "tier_priority"))
_SETTINGS = Settings()


def _check_chat(body: Any, said: Any) -> None:
    raw = build_action(
        _SETTINGS,
        IDENTITY,
        Context("sales", headers={"X-Request-Source": "web"}),
        body,
        task_id="t-1",
        action_id=UUID(int=2),
        queue_name="q",
        callback_queue="c",
        now=NOW,
        deadline=NOW + timeout_s(_SETTINGS, IDENTITY.tenant_tier, body.timeout),
    )
    assert len(fingerprint(Context("sales"), body)) == 32
    action = read_json(raw)
    assert action.keys() >= _ACTION_KEYS
    assert action["execution_context"].keys() >= _CONTEXT_KEYS
    assert action["queue_metadata"].keys() >= _QUEUE_KEYS
    assert 1 <= len(action["message"]) <= 4000
    assert 1 <= action["timeout"] <= _SETTINGS.for_tier("task_timeout_s", IDENTITY.tenant_tier)
    for name, default in (("message_type", "text"), ("user_info", {}), ("max_iterations", None)):
        assert action[name] == said.get(name, default), name
    assert action["message"] == said["message"]
    assert (action["tenant_id"], action["session_id"]) == (IDENTITY.tenant_id, IDENTITY.session_id)


# Callbacks.

_LARGEST = 1024 * 1024
_LONGEST_EXTENSION_MS = 7 * 86_400_000
_NEIGHBOUR = b'{"session_id": "neighbour", "tenant_id": "acme", "status": "completed"}'
_MESSAGE_KEYS = [
    "timestamp", "type", "task_id", "session_id", "tenant_id", "tenant_tier", "data", "metadata",
]  # fmt: skip


def callback(data: bytes) -> None:
    """What the router makes of a callback: an entry or a dead letter, and its neighbours are not touched."""
    _judge(expand(data))


def callback_json(data: bytes) -> None:
    """As `callback`, of callbacks that were valid once."""
    _judge(mutated(data, CALLBACKS))


def _judge(raw: bytes) -> None:
    moves = judge([raw, _NEIGHBOUR, raw], TENANT, AT, _LARGEST)
    assert not moves.mistakes, moves.mistakes[0]
    entries: dict[Any, tuple[Any, ...]] = {
        flat[start]: (session_id, *flat[start + 1 : start + ARGUMENTS_AN_ENTRY])
        for session_id, flat in moves.sessions.items()
        for start in range(0, len(flat), ARGUMENTS_AN_ENTRY)
    }
    assert entries.pop(1)[0] == "neighbour"
    if moves.dead:
        position, reason, detail, *copy = moves.dead
        assert not entries
        assert (position, copy) == (0, [2, reason, detail])
        assert reason in REASONS.keys() - {"router_error", "too_large", "session_unusable"}
        assert isinstance(detail, str)
        assert 0 < len(detail.encode()) <= 500  # encode: as Redis is sent it
        return
    assert entries.pop(0) == entries[2], "a copy is not known as one"
    _check_entry(raw, *entries.pop(2))
    assert not entries


@unless_too_deep
def _check_entry(
    raw: bytes, session_id: str, digest: bytes, body: bytes, kind: str, task_id: str, detail: str | bytes
) -> None:
    assert is_id(session_id)
    if kind == "c":
        assert digest == b""
        _check_piece(body, task_id, str(detail))
        return
    whole = with_position(body, "e1", 7)
    assert b"\n" not in whole
    assert b"\r" not in whole
    message = read_json(whole)
    assert list(message) == _MESSAGE_KEYS
    assert message["metadata"] == {"epoch": "e1", "seq": 7}
    assert len(digest) == 12
    assert message["type"] in {"agent_response", "error", "task_update"}
    assert (message["timestamp"], message["session_id"], message["tenant_id"]) == (AT, session_id, TENANT)
    assert message["tenant_tier"] in {None, *TIERS}
    assert message["data"]["task_id"] == message["task_id"]
    assert message["task_id"] is None or is_id(message["task_id"])
    _check_task(message, kind, task_id, detail)
    said = read_loosely(raw)
    if isinstance(said, dict):
        assert said["session_id"] == session_id
        assert said.get("tenant_id") in {None, TENANT}, "another tenant's"
        assert said.get("task_id") == message["task_id"]


def _check_piece(body: bytes, task_id: str, detail: str) -> None:
    """What the scripts take apart and put together again without reading it."""
    attempt, part, offset, chars = detail.split(" ")
    delta = read_json(b'"%b"' % body)
    assert (len(delta), b"\n" in body, part in {"text", "reasoning"}) == (int(chars), False, True)
    assert int(attempt) >= 1
    assert offset == "-" or int(offset) >= 0
    assert is_id(task_id)


def _check_task(message: Any, kind: str, task_id: str, detail: str | bytes) -> None:
    """What the scripts note with the task is what its client is told."""
    if kind == "":
        assert (task_id, detail) == ("", "")
        assert message["task_id"] is None
        return
    assert task_id == message["task_id"]
    status, _, more = (detail if isinstance(detail, bytes) else detail.encode()).partition(b" ")
    status, _, attempt = status.partition(b"#")
    assert attempt == b"" or int(attempt) >= 1
    if kind == "p":
        assert message["type"] == "task_update"
        assert status in {b"working", b"input_required"}
        longer, input_id, expires, step = (more.split(b" ") + [b""] * 4)[:4]
        assert more.count(b" ") <= 3
        assert 0 <= int(longer or 0) <= _LONGEST_EXTENSION_MS
        assert input_id == b"" or is_id(input_id.decode())
        assert int(expires or 0) >= 0
        assert len(step) in {0, 24}
        return
    assert (kind, message["type"] in {"agent_response", "error"}) == ("t", True)
    assert status.decode() == message["data"]["status"] in ENDED
    assert more == b"" or (len(more) <= 4_096 and isinstance(read_json(more), dict))


# Cursors, pushes, settings.


def cursor(data: bytes) -> None:
    """A cursor: the position that it names, or refused."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        position = parse_cursor(text)
    except InvalidCursor:
        return
    assert str(position) == text
    assert position.epoch.isascii()
    assert position.epoch.isalnum()
    assert 0 <= position.seq < 10**16


def push(data: bytes) -> None:
    """What is published on a session's channel: read, or a ValueError."""
    try:
        said = parse_push(data)
    except ValueError:
        return
    if isinstance(said, Live):
        assert data.partition(b"\n")[::2] == (b"~", said.frame)
    elif isinstance(said, Replaced):
        assert data[:1] == b"!"
    elif isinstance(said, Piece):
        head = f"+{said.task_id} {said.attempt} {said.part} "
        assert data.startswith(head.encode())
        assert data.partition(b"\n")[2] == said.inner
        assert is_id(said.task_id)
    elif isinstance(said, StreamEnd | Begun):
        assert data.rstrip(b"\n")[1:] == said.task_id.encode()
        assert is_id(said.task_id)
    else:
        assert isinstance(said, Batch)
        assert said.entries
        assert not any(b"\n" in entry for entry in said.entries)
        assert data.partition(b"\n")[2] == b"\n".join(said.entries)
        assert said.last == said.first + len(said.entries) - 1


_ROWS = dataclasses.fields(Settings)


def settings(data: bytes) -> None:
    """Settings: usable ones within their bounds, or a ConfigurationError.

    The input is a list of settings with a 0 byte between them; the first byte of each chooses the name and
    whether it is a flag or a variable.
    """
    environ: dict[str, str] = {}
    flags: dict[str, str | None] = {}
    for part in data.split(b"\0"):
        choice, text = part[:1] or b"\0", part[1:].decode("utf-8", "surrogateescape")
        number = choice[0]
        if number < len(_ROWS):
            environ[ENV_PREFIX + _ROWS[number].name.upper()] = text
        elif number < 2 * len(_ROWS):
            flags[_ROWS[number - len(_ROWS)].name] = text
        else:
            name, _, value = text.partition("=")
            environ[ENV_PREFIX + name] = value
    try:
        read = load(environ, flags)
    except ConfigurationError:
        return
    for row in _ROWS:
        _check_setting(row, getattr(read, row.name))
    assert all(read.keys().actions(tier) for tier in TIERS)


def _check_setting(row: dataclasses.Field[Any], value: Any) -> None:
    least, most, choices = (row.metadata[name] for name in ("least", "most", "choices"))
    assert type(value) is type(row.default), row.name
    assert not choices or value in choices
    for number in value if isinstance(value, tuple) else (value,):
        assert least is None or number >= least, row.name
        assert most is None or number <= most, row.name


# HTTP.


def http(data: bytes) -> None:
    """A connection: answers that a client can read, bounded, refused at most once and then closed.

    The first bytes choose the application's temper and how the rest is cut.
    """
    reader = Reader(data)
    temper = reader.byte()
    sizes = [reader.byte() * 16 for _ in range(reader.below(4))]
    stream = expand(reader.rest())
    sizes = [max(size, len(stream) // 50, 1) for size in sizes]  # a long one in few pieces, for speed
    pieces = (
        piece for part in cut(stream, sizes) for piece in cut(part, [http_connection.LONGEST_CHUNK]) if piece
    )
    http_connection.run(pieces, temper)


TARGETS: dict[str, Target] = {
    "frames": frames,
    "handshake": handshake_request,
    "client_message": client_message,
    "chat_body": chat_body,
    "client_json": client_json,
    "callback": callback,
    "callback_json": callback_json,
    "cursor": cursor,
    "push": push,
    "settings": settings,
    "http": http,
    **EVENT_TARGETS,
}
