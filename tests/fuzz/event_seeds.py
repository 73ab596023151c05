"""Where the fuzzers of `tests.fuzz.event_targets` begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from tests.fuzz.event_targets import SECRET, TASK
from tests.fuzz.examples import RUNS

_GET, _AGAIN = b"\0\0", b"\0\3"
_POST, _HEAD = b"\2\0", b"\3\0"
_GROUP = f"!{TASK}*1*3.1o.1bd2b2d2*0.0.00000000*3"
_TWO = f"!{TASK}*1*3.1o.1bd2b2d2*40.1.1f00c0de*3!t-0*2*0.0.00000000*9.9.000000ff*1"

_QUERIES = (
    "", "stream=1", "format=ag-ui", "format=ai-sdk&v=7", "format=native", "format=nope", "format=",
    f"token={SECRET}&tenant_id=acme&tenant_tier=free&user_id=ann&agent_id=sales", "tenant_id=a&tenant_id=b",
    "stream=1&have=t-1:1:3:0,t-0:2:0:9", "stream=1&have=t-1:0:0:0", "stream=1&have=", "have=x",
    "cursor=e1:2", "cursor=e1:2&last_event_id=e1:2", "cursor=e1:2&last_event_id=e1:3", "cursor=E1:2",
    "last_event_id=e1:9999999999999999", "cursor=e1:2%0A", "cursor=%D9%A1:1", "task_id=t-1",
    "format=ag-ui&task_id=t-1",
    "format=ag-ui&task_id=a%2Fb", "format=ai-sdk&task_id=t-2", "format=ag-ui&task_id=", "a=1&b&=c&&%ff",
)  # fmt: skip
_HEADERS = (
    f"Last-Event-ID: e1:2{_GROUP}", f"Last-Event-ID: e1:4*3{_TWO}", "Last-Event-ID: e1:2*0",
    "Last-Event-ID: e1:2!",
    f"Last-Event-ID: e1:2{_GROUP * 2}",
    "Last-Event-ID: x" + "9" * 1100, "Last-Event-ID: e1:2\nLast-Event-ID: e1:3",
    "Accept: text/event-stream;format=ai-sdk;v=7", 'Accept: */*, Text/Event-Stream ; FORMAT = "ag-ui"',
    "Accept: text/event-stream;format=x", "Accept: ;,=;,text/event-stream;format",
    f"Authorization: Bearer {SECRET}",
    f"Authorization: Basic {SECRET}\nX-Tenant-ID: acme\nX-Tenant-Tier: free\nX-User-ID: \xe9",
    "X-Context-Type: collection\nX-Collection-ID: c", "X-Context-Type: nope",
    "Idempotency-Key: k\nX-Agent-ID: sales",
    "X-Conversation-ID: a b", "traceparent: 00-0", "X-Client-Version: " + "1" * 300,
)  # fmt: skip


def _requests() -> Iterator[bytes]:
    for number, query in enumerate(_QUERIES):
        for begin in (_GET, _AGAIN) if number % 3 else (_POST, _GET, _HEAD):
            yield b"%b%c%b" % (begin, number % 3, query.encode())
    for number, line in enumerate(_HEADERS):
        for query in ("format=ag-ui", "format=ai-sdk", "cursor=e1:1&stream=1"):
            for begin in (_GET, _POST) if number > 11 else (_GET, _AGAIN):
                yield b"%b%c%b\n%b" % (begin, number % 3, query.encode(), line.encode("latin-1"))


def _bodies() -> Iterator[bytes]:
    yield from (json.dumps(run).encode() for run in RUNS)
    yield from (b"", b"[]", b"7", b"{", b"\xff", b"{}", b'{"messages": []}', b'{"message": {"role": "user"}}')
    for content in (
        b'""',
        b"7",
        b"[]",
        b"[7]",
        b'[{"type": "text"}]',
        b'"%b"' % (b"x" * 4001),
        rb'"\ud800"',
        b"null",
    ):
        yield b'{"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": %b}]}' % content
        yield (
            b'{"messages": [{"role": "user", "id": %b, "parts": [{"type": "text", "text": "a"}]}]}' % content
        )
    for name in ("resume", "messages", "message", "threadId", "trigger"):
        yield json.dumps({**RUNS[0], **RUNS[-1], name: [{}]}).encode()
    deep = b"\xff\xfe\x63[\xff\xfe" + b"\xff\xfe\x63]\xff\xfe"
    yield b'{"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": %b}]}' % deep


def _changes() -> Iterator[bytes]:
    for number in range(len(RUNS)):
        yield bytes((number, 0, 0))
        for place in range(0, 10, 2):
            yield bytes((number, place % 3, 1, 1, place, 1, 0, 0, 5 * place + number))
            yield bytes((number, 0, 2, 1, place, 1, 1, 0, 1, place % 4, 1, 0, 7 * place))


_WORDS = (
    b"format=ag-ui", b"format=ai-sdk", b"cursor=", b"have=", b"task_id=t-1", b"stream=1",
    b"last_event_id=", b"e1:2",
    b"\nLast-Event-ID: ", b"\nAccept: text/event-stream;format=", b"\nX-Tenant-ID: acme", b"&", b"=", b"%",
    b";v=7",
    _GROUP.encode(), b"\nAuthorization: Bearer ", SECRET.encode(),
)  # fmt: skip
_JSON_WORDS = (
    b'"messages"', b'"message"', b'"role"', b'"user"', b'"content"', b'"parts"', b'"text"', b'"type"',
    b'"threadId"',
    b'"runId"', b'"resume"', b'"interruptId"', b'"trigger"', b'"id"', b"null", b"[{", b"}]", rb'"\ud800"',
    b"\xff\xfe",
)  # fmt: skip

EVENT_SEEDS: Mapping[str, Callable[[], Iterator[bytes]]] = MappingProxyType(
    {"event_request": _requests, "event_body": _bodies, "event_json": _changes}
)
EVENT_WORDS: Mapping[str, tuple[bytes, ...]] = MappingProxyType(
    {"event_request": _WORDS, "event_body": _JSON_WORDS, "event_json": (b"\1\1\1", b"\0\0\0", b"\xff\xff")}
)
