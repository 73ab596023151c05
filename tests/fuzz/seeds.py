"""Where each fuzzer begins: valid examples of every kind, and words that are worth putting anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator

from backplane.settings import Settings
from gateway.frames import encode_close
from tests.fuzz.event_seeds import EVENT_SEEDS, EVENT_WORDS
from tests.fuzz.examples import CALLBACKS, MESSAGES
from tests.fuzz.targets import SECRET

_MASK = b"\x81\x00\xfe\x42"


def frame(first: int, payload: bytes = b"") -> bytes:
    """A client's frame."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((first,)) + length + _MASK + bytes(byte ^ _MASK[i % 4] for i, byte in enumerate(payload))


def _many(data: bytes, times: int) -> bytes:
    """``data`` 16 × ``times`` times, for `expand`."""
    return b"\xff\xfe%c%b\xff\xfe" % (times, data)


def _frames() -> Iterator[bytes]:
    close = encode_close(1000, "bye")[2:]
    whole = {
        "text": frame(0x81, b"hello") + frame(0x81, "é€🎉".encode()),
        "empty": frame(0x81) + frame(0x82),
        "longer": frame(0x81, b"x" * 126) + frame(0x81, b"x" * 200),
        "too-large": frame(0x81, b"x" * 201) + frame(0x81, b"y"),
        "binary": frame(0x82, b"\0\xff") + frame(0x82, b"x" * 300),
        "fragments": frame(0x01, b"a\xc3") + frame(0x89, b"p") + frame(0x00) + frame(0x80, b"\xa9"),
        "fragments-too-large": frame(0x01, b"x" * 150) + frame(0x80, b"x" * 150) + frame(0x81, b"y"),
        "control": frame(0x89, b"p" * 125) + frame(0x8A) + frame(0x88, close),
        "close": frame(0x88) + frame(0x81, b"ignored"),
        "close-code": frame(0x88, b"\x0f\xa1" + "é".encode()),
        "close-half": frame(0x88, b"\x03"),
        "not-utf-8": frame(0x81, b"ok") + frame(0x81, b"\xff"),
        "skip": frame(0x01, b"x" * 500) + frame(0x80, b"x" * 101),
        "64-bit": b"\x81\xff" + (65536).to_bytes(8, "big") + _MASK,
        "unmasked": b"\x81\x01x",
        "reserved": frame(0xC1, b"x"),
        "many": _many(frame(0x81, b"x"), 3),
    }
    for number, stream in enumerate(whole.values()):
        sizes = ((), (1,), (3, 7), (2, 0, 250))[number % 4]
        yield bytes((len(sizes), *sizes)) + stream


_UPGRADE = (
    b"GET /ws/s-1?tenant_id=acme&tenant_tier=free&token=%b HTTP/1.1\r\n"
    b"Host: gateway\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" % SECRET
)


def _handshake() -> Iterator[bytes]:
    yield _UPGRADE + b"\r\n"
    yield _UPGRADE + b"Authorization: Bearer %b\r\nCookie: %b\r\n\r\n" % (SECRET, SECRET)
    yield _UPGRADE + b"Sec-WebSocket-Protocol: orchestrator.v1, bearer.%b\r\n\r\n" % SECRET
    yield _UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\nOrigin: http://gateway\r\n\r\n"
    yield _UPGRADE + b"Authorization: %b\r\nauthorization: %b\r\n\r\n" % (SECRET, SECRET)
    yield _UPGRADE + _many(b"X-%b: %b\r\n" % (SECRET, SECRET), 9) + b"\r\n"
    changes = [
        (b"s-1?", b"s%2F1%C3%A9?"),
        (b"s-1?", b"%00?"),
        (b"s-1?", b"%b%%?" % SECRET),
        (b"&tenant", b"&a=1+2%2B&a%3D=&&b&tenant"),
        (b"&tenant", b"&token=x&tenant"),
        (SECRET, b"%ff" + SECRET),
        (b"GET /", b"POST /"),
        (b"GET /", b"GET http://gateway/"),
        (b"/1.1", b"/1.0"),
        (b": 13", b": 8"),
        (b"dGhl", b"%b." % SECRET),
        (b"Host: gateway", b"Host:"),
        (b"keep-alive, ", b"%b, " % SECRET),
        (b"\r\nHost", b"\r\n Host"),
    ]
    for old, new in changes:
        yield (_UPGRADE + b"\r\n").replace(old, new)


def _encoded(said: object) -> bytes:
    return json.dumps(said).encode()


_CHATS: tuple[dict[str, object], ...] = (
    *({name: value for name, value in said.items() if name != "type"} for said in MESSAGES[-2:]),
    {"message": "x" * 4001},
    {"message": ""},
    {"message": 7, "user_info": []},
    {"message": "m", "timeout": 10**30, "max_iterations": 1001},
)
_NO_OBJECTS = (b"[1, 2]", b"nope", b"", b"7", b'"\xff"', b'{"message": "\xff"}', rb'{"message": "\ud800"}')


def _chat_bodies() -> Iterator[bytes]:
    yield from map(_encoded, _CHATS)
    yield from _NO_OBJECTS
    yield json.dumps(_CHATS[1], ensure_ascii=False).encode()
    yield b'{"message": "a", "message": "b", "user_info": {"a": 1, "a": 2}}'
    yield b'{"message": "m", "user_info": {"a":' + _many(b"[", 2) + _many(b"]", 2) + b"}}"


def _client_messages() -> Iterator[bytes]:
    yield from map(_encoded, MESSAGES)
    refs: tuple[object, ...] = (10**30, "x" * 129, 1.5, True, [])
    for ref in refs:
        yield _encoded({"type": "ping", "ref": ref})
        yield _encoded({"type": "dance", "ref": ref})
    yield from (_encoded({"type": "chat", **chat, "ref": "r"}) for chat in _CHATS)
    yield from _NO_OBJECTS
    yield from (b'{"type": "ack", "seq": -1}', b'{"ref": 1}', b'{"type": "ping", "type": "pong"}')
    yield b'{"type": "chat", "user_info": ' + _many(b'{"a":', 99)


def _callbacks() -> Iterator[bytes]:
    yield from map(_encoded, CALLBACKS)
    yield from _NO_OBJECTS
    yield from (b"{}", b'{"session_id": "s", "tenant_id": "another"}')
    yield b'{"session_id": "s", "result": {"sources": ' + _many(b"[", 9) + _many(b"]", 9) + b"}}"
    yield b'{"session_id": "s",\r\n "result": {"response": "a",\n"own": "\xff"}}'


def _changes(examples: int) -> Iterator[bytes]:
    """For the mutator: each example as it is, and each with some of its members changed."""
    for number in range(examples):
        yield bytes((number, 0, 0))
        for place in range(0, 12, 2):  # a member of the object, its value one of the odd ones
            yield bytes((number, place % 3, 1, 1, place, 1, 0, 0, 5 * place + number))
        yield bytes((number, 0, 1, 1, 1, 0, number % 4, number, 3, 1))
        yield bytes((number, 0, 1, 1, 9, 1, 0, 5, 124, number % 2))


def _cursors() -> Iterator[bytes]:
    yield from (
        b"1m2k3j:42",
        b"a:0",
        b"0:9999999999999999",
        b":1",
        b"A:1",
        b"a:01",
        b"a:-1",
        b"",
        b"a",
        b"a:1\n",
    )


def _pushes() -> Iterator[bytes]:
    yield from (
        b"1m2k3j:42\n{}\n{}",
        b"a:1\n",
        b'~\n{"type":"agent_chunk"}',
        b"!7",
        b"!",
        b"",
        b"\xff:1\nx",
        b"a:x",
    )


def _settings() -> Iterator[bytes]:
    rows = dataclasses.fields(Settings)
    for number, row in enumerate(rows):
        shown = ",".join(map(str, row.default)) if isinstance(row.default, tuple) else str(row.default)
        yield bytes((number,)) + shown.encode()
        yield bytes((number + len(rows),)) + shown.encode() + b"\0" + bytes((number,)) + b"-1"
    yield b"\xffREDIS_URLS=x"
    yield b"\xffport=1"


_HOST = b" HTTP/1.1\r\nHost: a\r\n"
_GET = b"GET /x%20y?q=1" + _HOST + b"\r\n"
_POST = b"POST /p" + _HOST + b"Content-Length: 5\r\n\r\nhello"
_CHUNKED = b"POST /p" + _HOST + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n"
_SOCKET = b"GET /ws/s" + _HOST + _UPGRADE.partition(b"Host: gateway\r\n")[2] + b"\r\n"


def _http() -> Iterator[bytes]:
    streams = (
        _GET,
        _POST,
        _CHUNKED + b"\r\n",
        _CHUNKED + b"X: trailer\r\n\r\n",
        _SOCKET,
        _GET + _SOCKET,
        _SOCKET + b"\x81\x80\0\0\0\0",
        _GET + _POST + _GET,
        _many(_GET, 1),
        b"HEAD /" + _HOST + b"\r\n" + _GET,
        b"OPTIONS *" + _HOST + b"\r\n",
        b"CONNECT a:443" + _HOST + b"\r\n",
        b"GET http://b/c" + _HOST + b"\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + _GET,
        b"GET /" + _HOST + b"Connection: close\r\n\r\n" + _GET,
        b"GET /" + _HOST + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n" + _GET,
        b"POST /p" + _HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /p" + _HOST + b"Content-Length: 99999\r\n\r\n" + _many(b"x" * 200, 31),
        b"POST /p" + _HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + _HOST + _many(b"X: 0123456789\r\n", 99) + b"\r\n",
        b"GET /" + _HOST + b"X: " + _many(b"0123456789", 99),
        b"GET /" + _many(b"0123456789", 99),
        b"\x16\x03\x01\x02\0\x01\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    )
    for number, stream in enumerate(streams):
        for temper in (number % 4, (number + 1) % 4):
            sizes = ((), (1,), (3, 250))[(number + temper) % 3]
            yield bytes((temper, len(sizes), *sizes)) + stream


_JSON_WORDS = (
    b'{"', b'":', b'"}', b"null", b"true", b"false", b"1e999", b"-0.0", rb'"\ud800"', rb"\u0000", b"\xff\xfe",
    b'"type"', b'"ref"', b'"seq"', b'"ping"', b'"ack"', b'"chat"', b'"message"', b'"user_info"', b'"timeout"',
)  # fmt: skip
_CALLBACK_WORDS = (
    *(b'"%b"' % name.encode() for name in dict.fromkeys(name for one in CALLBACKS for name in one)),
    b'"execution.chunk"', b'"execution.progress"', b'"execution.error"', b'"x_callback"', b'"completed"',
    b'"failed"', b'"timeout"', b'"error"', b'"response"', b'"delta"', b'"offset"', b'"part"', b'"progress"',
    b'"status"', b'"tool"', b'"sources"', b'"agent_info"', b'"model_used"', b'"retryable"', b'"success"',
)  # fmt: skip
_HTTP_WORDS = (
    b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n\r\n", b"Host: a\r\n",
    b"Connection: Upgrade\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"%00", b"%2F",
    b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n", b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Protocol: ",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"X-Forwarded-For: ",
    b"X-Forwarded-Proto: ", b"\xff\xfe",
)  # fmt: skip

_CHANGE_WORDS = (b"\1\1\1", b"\0\0\0", b"\xff\xff")

SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "frames": _frames,
    "handshake": _handshake,
    "client_message": _client_messages,
    "chat_body": _chat_bodies,
    "client_json": lambda: _changes(len(MESSAGES)),
    "callback": _callbacks,
    "callback_json": lambda: _changes(len(CALLBACKS)),
    "cursor": _cursors,
    "push": _pushes,
    "settings": _settings,
    "http": _http,
    **EVENT_SEEDS,
}
WORDS: dict[str, tuple[bytes, ...]] = {
    "frames": (b"\x81\x80", b"\x01\xfe", b"\x80\xff", b"\x89\xfd", b"\x88\x82", b"\xff\xfe", _MASK),
    "handshake": (*_HTTP_WORDS, SECRET),
    "client_message": _JSON_WORDS,
    "chat_body": _JSON_WORDS,
    "callback": (*_JSON_WORDS, *_CALLBACK_WORDS),
    "client_json": _CHANGE_WORDS,
    "callback_json": _CHANGE_WORDS,
    "cursor": (b":", b"0123456789abcdef", b"\xd9\xa4"),
    "push": (b"~\n", b"!", b":1\n"),
    "settings": (b"{tier}", b"{tenant_id}", b"{environment}", b"acme=4", b"9" * 400, b"1_0", b"\xd9\xa4"),
    "http": _HTTP_WORDS,
    **EVENT_WORDS,
}
