"""Odd HTTP requests: what they are made of, and those about tasks, events and event streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

NASTY = [
    *(bytes((byte,)) for byte in b"\0\r\n\t \"'\\/%#?&;:*{}[]<>|^`@+"),
    *(text.encode() for text in ("é", "\u202e", "\ufeff", "\U0001f389")),
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xc0\xaf",  # an overlong slash
]
ALLOWED = {"X-User-ID": (b"@", b"+"), "user_id": (b"@", b"+")}

IDS = {"X-Tenant-ID": b"acme", "X-Tenant-Tier": b"free", "X-Session-ID": b"s", "X-Agent-ID": b"a"}
GOOD = b'{"message": "hello"}'


class Case(NamedTuple):
    """A request.

    Attributes:
        kind: by which it is counted.
        refused: a 2xx, or an open socket, would be wrong.
        answered: it must be; not what is cut short or too large to be read to its end.
    """

    kind: str
    data: bytes
    refused: bool = False
    answered: bool = True


def request(method: bytes, target: bytes, headers: dict[str, bytes], body: bytes | None = None) -> bytes:
    length = {} if body is None else {"Content-Length": b"%d" % len(body)}
    lines = [b"%b: %b" % (name.encode(), value) for name, value in {**length, **headers}.items()]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: a", *lines, b"", body or b""])


def around(nasty: bytes) -> bytes:
    """In the middle, where nothing trims it."""
    return b"a" + nasty + b"b"


_STREAM = b"/api/chat/sessions/s/events"
_BROADCAST = b"/api/broadcast"
_CLOSE = {"Connection": b"close"}
_WHO = {name: IDS[name] for name in ("X-Tenant-ID", "X-Tenant-Tier")}
_AG_UI: dict[str, Any] = {
    "threadId": "t",
    "runId": "r",
    "messages": [{"id": "m", "role": "user", "content": "hello"}],
}
_AI_SDK: dict[str, Any] = {
    "id": "c",
    "trigger": "submit-message",
    "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}],
}


def event_cases() -> Iterator[Case]:
    """About tasks, events and event streams; no case waits for an agent."""
    yield from _ids_of_tasks()
    yield from _ids_of_streams()
    yield from _positions()
    yield from _formats()
    yield from _bodies()


def _get(target: bytes, **more: bytes) -> bytes:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return request(b"GET", target, {**_CLOSE, **_WHO, **headers})


def _post(target: bytes, body: bytes, **more: bytes) -> bytes:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return request(b"POST", target, {**_CLOSE, **_WHO, "X-Agent-ID": b"a", **headers}, body)


def _ids_of_tasks() -> Iterator[Case]:
    for nasty in NASTY:
        value = around(nasty)
        for shown in (quote_from_bytes(value, safe="").encode(), value):
            path = b"/api/chat/tasks/" + shown
            yield Case("id of a task", _get(path), refused=True)
            yield Case("id of a task", _post(path + b"/cancel", b"{}"), refused=True)
            yield Case("id of a task", _post(path + b"/input", b'{"input_id":"i","value":1}'), refused=True)
        for name in ("reason", "input_id", "value"):
            body = json.dumps({"input_id": "i", "value": 1, name: "@"}).encode().replace(b"@", value)
            for what in (b"/cancel", b"/input"):
                yield Case("id in a task's body", _post(b"/api/chat/tasks/t" + what, body), refused=True)
        for name in ("task_id", "client_message_id"):
            said = json.dumps({name: "@"}).encode().replace(b"@", value)
            yield Case(
                "id in a cancel", _post(b"/api/chat/cancel", said, X_Session_ID=b"unused"), refused=True
            )
        for name in ("topic", "agent_id", "session_id", "tier"):
            said = json.dumps({"to": {name: "@"}, "payload": 1}).encode().replace(b"@", value)
            may = name == "topic" and nasty in (b"/", b":", b"@", b"+")
            yield Case("id in a broadcast", _post(_BROADCAST, said), refused=not may)


def _ids_of_streams() -> Iterator[Case]:
    for nasty in NASTY:
        value = around(nasty)
        for shown in (quote_from_bytes(value, safe="").encode(), value):
            yield Case("id of a stream", _get(b"/api/chat/sessions/" + shown + b"/events"), refused=True)
            yield Case("name of a chat", _get(_STREAM + b"/" + shown + b"/stream"))
        for name, begin in (
            ("tenant_id", b""), ("tenant_tier", b""), ("user_id", b""), ("agent_id", b""), ("cursor", b""),
            ("last_event_id", b""), ("task_id", b"format=ag-ui&"), ("task_id", b"format=ai-sdk&"),
            ("format", b""),
            ("have", b"stream=1&"), ("v", b"format=ai-sdk&"), ("token", b""),
        ):  # fmt: skip
            escaped = quote_from_bytes(value, safe="").encode()
            refused = name not in ("v", "token") and nasty not in ALLOWED.get(name, ())
            for shown, surely in ((escaped, refused), (value, False)):
                data = _get(_STREAM + b"?" + begin + name.encode() + b"=" + shown, **_without(name))
                yield Case("id in a stream's query", data, surely)
        yield Case("odd Last-Event-ID", _get(_STREAM, Last_Event_ID=value), refused=True)
        yield Case("odd Accept", _get(_STREAM, Accept=b"text/event-stream;format=" + value))
        yield Case("odd X-User-ID", _get(_STREAM, X_User_ID=value), nasty not in ALLOWED["X-User-ID"])


def _without(parameter: str) -> dict[str, bytes]:
    """A header that says the same would contradict it."""
    other = {"tenant_id": "X_Tenant_ID", "tenant_tier": "X_Tenant_Tier"}.get(parameter)
    return {} if other is None else {other: IDS[other.replace("_", "-")]}


def _positions() -> Iterator[Case]:
    group = b"!t*1*5.1o.12345678*0.0.00000000*1"
    for position, refused in (
        (b"e1:1", False), (b"e1:1*3", False), (b"e1:1" + group, False), (b"e1:9999999999999999", False),
        (b"e1:9999999999999999*9999" + group.replace(b"*1", b"*9999999999", 1), False), (b"e1:1*0", True),
        (b"e1:" + b"9" * 17, True), (b"e1:1" + group * 2, True), (b"e1:1!t", True), (b"e" * 33 + b":1", True),
        (b"e1:1" + b"".join(b"!%d" % n + group[2:] for n in range(5)), True), (b"x" * 2000, True),
    ):  # fmt: skip
        for begin in (b"", b"format=ag-ui&", b"format=ai-sdk&", b"stream=1&"):
            yield Case("positions", _get(_STREAM + b"?" + begin + b"cursor=" + position), refused)
            yield Case("positions", _get(_STREAM + b"?" + begin[:-1], Last_Event_ID=position), refused)
            both = _STREAM + b"?" + begin + b"cursor=e9:9"
            yield Case("positions", _get(both, Last_Event_ID=position), refused)
        yield Case("positions", _get(_STREAM + b"/c/stream", Last_Event_ID=position), refused)
    for have, refused in (
        (b"t:1:0:0", False), (b",".join([b"t:1:0:0"] * 8), False), (b",".join([b"t:1:0:0"] * 9), True),
        (b"t:0:0:0", True), (b"t:1:0", True), (b",", True), (b"t:1:0:99999999999", True), (b"*:1:0:0", True),
    ):  # fmt: skip
        yield Case("what a client has", _get(_STREAM + b"?stream=1&have=" + have), refused)
        yield Case("what a client has", _get(_STREAM + b"?have=" + have))
    for twice in (
        b"cursor=e1:1&last_event_id=e1:2",
        b"cursor=e1:1&cursor=e1:1",
        b"format=ag-ui&format=ag-ui",
    ):
        yield Case("given twice", _get(_STREAM + b"?" + twice), refused=True)


def _formats() -> Iterator[Case]:
    for accept in (
        b"*/*", b"", b"text/html", b"text/event-stream;format=ag-ui",
        b'text/event-stream; FORMAT="ai-sdk" ;v=7',
        b"text/event-stream;format=nope", b"text/event-stream;format", b"text/event-stream;;;=;format==",
        b"text/event-stream;format=ag-ui," * 50, b",;,;,", b"\xff",
        b"text/event-stream;format=ai-sdk;v=" + b"9" * 5000,
    ):  # fmt: skip
        for method in (b"GET", b"POST", b"HEAD", b"PUT"):
            headers = {**_CLOSE, **_WHO, "Accept": accept}
            yield Case(
                "formats", request(method, _STREAM, headers), refused=method in (b"HEAD", b"PUT", b"POST")
            )
        chat = request(b"POST", _STREAM + b"/c/stream", {**_CLOSE, **_WHO, "Accept": accept}, b"{}")
        yield Case("formats", chat, refused=True)
    for version in (b"HTTP/1.0", b"HTTP/1.1"):
        for query in (b"", b"?format=ag-ui"):
            plain = _get(_STREAM + query).replace(b"HTTP/1.1", version)
            yield Case("formats", plain)
            yield Case("a stream and more", plain + _get(b"/livez"), answered=False)
    both = b"X-Tenant-ID: acme\r\nX-Tenant-ID: acme\r\n"
    yield Case("given twice", _get(_STREAM).replace(b"X-Tenant-ID: acme\r\n", both), refused=True)


_NO_MESSAGES = (
    b"", b"[]", b"7", b"null", b"nope", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}", b"{}{}", b'"' * 9, b"[" * 9999,
    b'{"a":' * 50 + b"1" + b"}" * 50,
)  # fmt: skip
_MEMBERS: tuple[Any, ...] = (
    None, 7, "", "x" * 5000, [], {}, [None], [[]], [{}], [{"role": "user"}], {"role": "user"},
)  # fmt: skip
_TEXTS: tuple[Any, ...] = (
    None, 7, "", "\ud800", "\0", "x" * 5000, [], {}, [{}], [{"type": "text"}], [{"type": "file"}],
)  # fmt: skip
_PAYLOADS = (
    b"NaN", b"1e999", b"9" * 5000, b'"\xff"', rb'"\ud800"', b"[" * 30 + b"]" * 30, b"[" * 40 + b"]" * 40, b"",
)  # fmt: skip


def _bodies() -> Iterator[Case]:
    """Bodies that are none, or nearly right."""
    for body in _NO_MESSAGES:
        for target in (_STREAM + b"?format=ag-ui", _STREAM + b"?format=ai-sdk", _BROADCAST):
            yield Case("no message", _post(target, body), refused=True)
        for what in (b"tasks/t/cancel", b"tasks/t/input", b"cancel"):
            yield Case("no message", _post(b"/api/chat/" + what, body), refused=True)
    for kind, right in ((b"ag-ui", _AG_UI), (b"ai-sdk", _AI_SDK)):
        yield from _posted(_STREAM + b"?format=" + kind, right)
    for payload in _PAYLOADS:
        yield Case("odd payloads", _post(_BROADCAST, b'{"to":{"topic":"x"},"payload":' + payload + b"}"))
        body = b'{"input_id":"i","value":' + payload + b"}"
        yield Case("odd payloads", _post(b"/api/chat/tasks/t/input", body), refused=True)


def _posted(target: bytes, right: dict[str, Any]) -> Iterator[Case]:
    whole = json.dumps(right).encode()
    for name in (*right, "message", "resume", "trigger", "state"):
        for value in _MEMBERS:
            yield Case("odd members", _post(target, json.dumps({**right, name: value}).encode()))
    (message,) = right["messages"]
    for name in message:
        for value in _TEXTS:
            body = json.dumps({**right, "messages": [{**message, name: value}]}).encode()
            yield Case("odd messages", _post(target, body))
    yield Case("no agent", _post(target, whole).replace(b"X-Agent-ID: a\r\n", b""), refused=True)
    large = json.dumps({**right, "state": "x" * 70_000}).encode()
    yield Case("large bodies", _post(target, large), refused=True, answered=False)
    yield Case("cut short", _post(target, whole)[:-9], answered=False)
    yield Case("content types", _post(target, whole, Content_Encoding=b"gzip"), refused=True)
