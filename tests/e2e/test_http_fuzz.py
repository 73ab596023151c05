"""Some four thousand odd requests over raw sockets: each is answered as HTTP says, and the pod goes on."""

from __future__ import annotations

import json
import random
import re
import select
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import pytest

from gateway.errors import ERROR_CODES
from tests.support.odd_requests import ALLOWED, GOOD, IDS, NASTY, Case, around, event_cases, request
from tests.support.processes import Cluster, Pod, get
from tests.support.talk import open_socket, receive

SEED = 20260131
STREAM = b"text/event-stream"
PATIENCE_S = 0.03  # with a request that may never be whole
MOST_GROWTH_KIB = 20 * 1024

ID_HEADERS = (*IDS, "X-User-ID", "X-Conversation-ID", "X-Collection-ID")
OTHER_HEADERS = ("X-Context-Type", "X-Task-Timeout", "X-Request-Source", "traceparent", "X-Client-Version")
QUERY_IDS = ("tenant_id", "tenant_tier", "user_id", "agent_id", "cursor")
ROUTES = (
    b"/openapi.json", b"/health", b"/health/detailed", b"/livez", b"/readyz",
    b"/ws/stats?tenant_id=acme", b"/ws/s",
    b"/ws/stats", b"/api/chat/stats", b"/api/chat/send", b"/", b"/nothing", b"/livez/", b"//livez",
    b"/%6civez", b"/livez?", b"*", b"http://other/livez", b"livez", b"/\xc3\xa9", b"/..%2f",
    b"/" + b"x" * 5000, b"/api/broadcast", b"/api/chat/cancel", b"/api/chat/tasks/t",
    b"/api/chat/tasks/t/cancel", b"/api/chat/tasks/t/input", b"/api/chat/sessions/s/events/c/stream",
    b"/api/chat/sessions/s/events", b"/api/chat/sessions/s/events?tenant_id=acme&tenant_tier=free",
    b"/api/chat/sessions/s/events?tenant_id=acme&tenant_tier=free&format=ai-sdk",
)  # fmt: skip
METHODS = (
    b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"BREW", b"get",
    b"",
)  # fmt: skip
UPGRADE = {
    "Upgrade": b"websocket",
    "Connection": b"Upgrade",
    "Sec-WebSocket-Version": b"13",
    "Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
}


def send(body: bytes = GOOD, **headers: bytes) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(b"POST", b"/api/chat/send", {"Connection": b"close", **IDS, **given}, body)


def nasty_ids() -> Iterator[Case]:
    """Each character in each place that takes an id."""
    for nasty in NASTY:
        value = around(nasty)
        for name in (*ID_HEADERS, *OTHER_HEADERS):
            refused = name in ID_HEADERS and nasty not in ALLOWED.get(name, ())
            yield Case("id in a header", send(**{name.replace("-", "_"): value}), refused)
        for name in ("agent_id", "client_message_id", "message_type"):
            said = json.dumps({"message": "m", name: "@"}).encode().replace(b"@", value)
            yield Case("id in JSON", send(said))
        for name in QUERY_IDS:
            refused = nasty not in ALLOWED.get(name, ())
            given = {"tenant_id": b"acme", "tenant_tier": b"free", name: quote_from_bytes(value).encode()}
            yield Case("id in a query, escaped", upgrade(b"/ws/s", given), refused)
            yield Case("id in a query, raw", upgrade(b"/ws/s", {**given, name: value}))
        yield Case(
            "id in a path, escaped", upgrade(b"/ws/" + quote_from_bytes(value, safe="").encode()), True
        )
        yield Case("id in a path, raw", upgrade(b"/ws/" + value), nasty not in b"?")
        for shown, refused in ((quote_from_bytes(value).encode(), True), (value, False)):
            target = b"/ws/stats?tenant_id=" + shown
            yield Case("id in the stats", request(b"GET", target, {"Connection": b"close"}), refused)


def upgrade(path: bytes, query: dict[str, bytes] | None = None) -> bytes:
    given = query or {"tenant_id": b"acme", "tenant_tier": b"free"}
    parameters = b"&".join(b"%b=%b" % (name.encode(), value) for name, value in given.items())
    return request(b"GET", path + b"?" + parameters, UPGRADE)


def routes() -> Iterator[Case]:
    """Each method on each address, with and without a body."""
    for method in METHODS:
        for route in ROUTES:
            yield Case("methods and routes", request(method, route, {"Connection": b"close"}))
        for route in (b"/api/chat/send", b"/livez", b"/ws/stats"):
            yield Case("methods and routes", request(method, route, {"Connection": b"close", **IDS}, GOOD))


def bodies() -> Iterator[Case]:
    """Bodies that are not what they ought to be, or not what the headers say."""
    types = (
        b"",
        b"text/plain",
        b"application/json; charset=utf-7",
        b"multipart/form-data",
        b"\xff",
        b"a/b" * 99,
    )
    for kind in types:
        yield Case("content types", send(Content_Type=kind))
        yield Case("content types", send(Content_Encoding=kind))
    for depth in (10, 100, 800, 1100, 5000, 10_000):
        for begin, end in ((b"[", b"]"), (b'{"a":', b"}")):
            value = begin * depth + b"1" + end * depth
            yield Case("deep JSON", send(b'{"message": "m", "user_info": {"a": %b}}' % value))
            yield Case("deep JSON", send(value), refused=True)
            yield Case("deep JSON", send(begin * depth), refused=True)
    odd = (
        b"",
        b"[]",
        b"7",
        b"nope",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"message": NaN}',
        b"{}" * 2,
        b'"' * 9,
    )
    for body in odd:
        yield Case("no message", send(body), refused=True)
    for body in (
        b'{"message": "m", "user_info": {"a": %b}}' % (b"9" * digits) for digits in (19, 400, 4300, 9999)
    ):
        yield Case("long numbers", send(body))
    for size in (66_000, 1_000_000):
        yield Case("large bodies", send(b'{"message": "%b"}' % (b"x" * size)), refused=True, answered=False)


def framings() -> Iterator[Case]:
    """Lengths, chunks and heads that contradict each other or do not end."""
    for length in (b"-1", b"+5", b"5, 5", b"5,6", b"0x5", b"99999999999999999999", b"", b" ", b"5 5"):
        yield Case("wrong lengths", send(Content_Length=length), answered=False)
    for start in range(0, len(send()), 7):
        yield Case("cut short", send()[:start], answered=False)
    whole = send(b"", Transfer_Encoding=b"chunked", Content_Length=b"")
    whole = whole.replace(b"Content-Length: \r\n", b"")
    for chunks in (
        b"14\r\n" + GOOD + b"\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"z\r\n\r\n",
        b"-1\r\n",
        b"14",
        b"ffffffffffffffff\r\n",
    ):
        yield Case("chunks", whole + chunks, answered=False)
    for name in (*IDS, "Content-Length", "Host", "Transfer-Encoding", "Authorization"):
        for first in (b"x", b"a", b"20"):
            line = b"%b: %b\r\n" % (name.encode(), first)
            yield Case("headers twice", send().replace(b"Host: a\r\n", b"Host: a\r\n" + line), answered=False)
    for size in (1000, 16_000, 17_000, 60_000):
        yield Case("large heads", send(X_Large=b"x" * size))
        yield Case("large heads", send(**{f"X_{number}": b"y" for number in range(size // 10)}))
        yield Case("large heads", request(b"GET", b"/livez?" + b"x" * size, {"Connection": b"close"}))
    for line in (
        b"no colon",
        b": no name",
        b" folded",
        b"sp ace: x",
        b"\xc3\xa9: x",
        b"X: \0",
        b"X:\x01",
        b"X" * 300,
    ):
        yield Case("odd header lines", send().replace(b"Host: a\r\n", b"Host: a\r\n" + line + b"\r\n"))
    for line in (
        b"GET /livez HTTP/9.9",
        b"GET  /livez HTTP/1.1",
        b"GET /livez",
        b"\x16\x03\x01\x02",
        b"GET /livez HTTP/1.1 x",
    ):
        yield Case("odd request lines", line + b"\r\nHost: a\r\nConnection: close\r\n\r\n", answered=False)


def handshakes() -> Iterator[Case]:
    """Upgrades with one header wrong."""
    for name in UPGRADE:
        for value in (b"", b"x", b"14", b"websocket, x", b"\xff", b"dGhlIHNhbXBsZSBub25jZQ"):
            headers = {**UPGRADE, name: value}
            target = b"/ws/s?tenant_id=acme&tenant_tier=free"
            yield Case("handshakes", request(b"GET", target, headers), answered=False)
    for path in (
        b"/ws/",
        b"/ws",
        b"/ws/a/b",
        b"/ws/a%2fb",
        b"/ws/%",
        b"/ws/..",
        b"/ws/" + b"a" * 129,
        b"/livez",
    ):
        yield Case("handshakes", upgrade(path), refused=path != b"/ws/..")
    for origin in (b"http://evil", b"null", b"", b"\xff", b"http://a:b:c"):
        yield Case("handshakes", request(b"GET", b"/ws/s", {**UPGRADE, "Origin": origin}), refused=True)


def mixtures(chance: random.Random, cases: list[Case], count: int) -> Iterator[Case]:
    """Requests of the other kinds with bytes lost, doubled or exchanged."""
    for _ in range(count):
        data = bytearray(chance.choice(cases).data[:4000])
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data) or 1)
            new = chance.choice(
                (b"", chance.randbytes(chance.randint(1, 4)), bytes(data[place : place + 9]) * 2)
            )
            data[place : place + chance.randint(0, 3)] = new
        yield Case("damaged", bytes(data), answered=False)


def all_cases() -> list[Case]:
    cases = [*nasty_ids(), *routes(), *bodies(), *framings(), *handshakes(), *event_cases()]
    return [*cases, *mixtures(random.Random(SEED), cases, 800)]


class Answer(NamedTuple):
    """What came: status 0 for nothing at all."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(pod: Pod, case: Case) -> Answer:
    """Send a request, and read until the pod closes, or has opened a socket and said something."""
    with socket.create_connection(("127.0.0.1", pod.port), 5) as connection:
        got = b""
        try:
            connection.sendall(case.data)
            while (more := hear(connection, case)) and not (
                said_on_a_socket(got := got + more) or said_on_a_stream(got)
            ):
                pass
        except ConnectionError:  # it closed before it had read everything, and its answer may be lost
            assert not case.answered, case
        except TimeoutError:
            pytest.fail(f"no end of the answer: {got[:300]!r} to {case}")
    return read(got, case)


def hear(connection: socket.socket, case: Case) -> bytes:
    """What comes next; a request that may not be whole is ended when nothing comes."""
    if not case.answered and not select.select([connection], [], [], PATIENCE_S)[0]:
        connection.shutdown(socket.SHUT_WR)
    return connection.recv(65536)


def said_on_a_socket(got: bytes) -> bool:
    _, end, frame = got.partition(b"\r\n\r\n")
    return bool(end) and got.startswith(b"HTTP/1.1 101 ") and len(frame) > 4 and len(frame) >= 4 + frame[3]


def said_on_a_stream(got: bytes) -> bool:
    head, _, events = got.rpartition(b"HTTP/1.1 200 ")[2].partition(b"\r\n\r\n")
    return STREAM in head.lower() and b"\n\n" in events


_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\x20-\x7e]*")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\x20-\x7e\t]*)")


def read(got: bytes, case: Case) -> Answer:
    """Read the last of the answers that came; all of them must be whole and well-formed."""
    answer = Answer(0, {}, b"")
    while got:
        head, end, got = got.partition(b"\r\n\r\n")
        assert end, f"a head without an end: {head!r} to {case}"
        first, *lines = head.split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(first)
        fields = [_HEADER_LINE.fullmatch(line) for line in lines]
        assert status_line is not None, f"{first!r} to {case}"
        headers = {field[1].decode().lower(): field[2].decode() for field in fields if field is not None}
        assert len(headers) == len(lines), f"not headers, or twice the same: {lines} to {case}"
        status = int(status_line[1])
        streams = headers.get("content-type", "").encode() == STREAM
        length = len(got) if status == 101 or streams else int(headers.get("content-length", 0))
        if case.data.startswith(
            b"HEAD "
        ):  # the HTTP server sends a body too if that is all that it could read
            length = min(length, len(got))
        assert len(got) >= length, f"a body cut short: {got!r} to {case}"
        answer, got = Answer(status, headers, got[:length]), got[length:]
    return answer


def check(answer: Answer, case: Case) -> str:
    """What every answer must be; returns how it is counted."""
    status = answer.status
    assert status or not case.answered, f"no answer to {case}"
    assert status < 500 or status == 503, f"{answer} to {case}"
    if status == 101:
        said = json.loads(answer.body[4 : 4 + int.from_bytes(answer.body[2:4], "big")])
        refused = said["type"] == "error"
        assert refused or said["type"] == "connection_ack", f"{answer} to {case}"
        assert not refused or said["data"]["error_code"] in ERROR_CODES, f"{answer} to {case}"
        assert refused or not case.refused, f"{answer} to {case}"
        return f"101 {said['type']}"
    if status >= 400 and not case.data.startswith(b"HEAD "):
        return f"{status} {refusal(answer, case)}"
    assert status < 300 or status >= 400, f"{answer} to {case}"
    assert status == 0 or status >= 400 or not case.refused, f"{answer} to {case}"
    return str(status or "nothing")


def refusal(answer: Answer, case: Case) -> str:
    """Our own problem documents, and the words of the HTTP server."""
    if answer.headers["content-type"] != "application/problem+json":
        assert (answer.status, answer.body) == (400, b"Invalid HTTP request received."), f"{answer} to {case}"
        return "(not HTTP)"
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["error_code"] in ERROR_CODES, f"{answer} to {case}"
    assert problem["title"]
    assert problem["detail"]
    code: str = problem["error_code"]
    return code


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """One pod, and no router: nobody answers the messages."""
    folder = tmp_path_factory.mktemp("fuzz")
    with Cluster(folder, pods=1, routers=0, unlimited=True, SESSION_TASKS_MAX="1000") as running:
        yield running.pods[0]


def test_odd_requests_are_answered_and_the_pod_goes_on(pod: Pod) -> None:
    """Well-formed answers, refusals with a known code, no mistake in the log, and no memory kept."""
    cases = all_cases()
    for case in cases[:200]:  # what is allocated once
        ask(pod, case)
    before_kib = pod.rss_kib()
    counts: Counter[tuple[str, str]] = Counter()
    for case in cases:
        counts[case.kind, check(ask(pod, case), case)] += 1
    assert get(f"{pod.url}/livez") == (200, {"status": "ok"})
    assert get(f"{pod.url}/readyz")[0] == 200
    grown_kib = pod.rss_kib() - before_kib
    for (kind, outcome), count in sorted(counts.items()):
        print(f"\n{kind:24} {outcome:32} {count:5}", end="")
    print(f"\n{len(cases)} requests, {grown_kib} KiB more memory")
    assert not mistakes(pod.output)
    assert grown_kib < MOST_GROWTH_KIB


def mistakes(log: str) -> list[str]:
    """Tracebacks, but for those of clients that leave before their body is complete."""
    _, *traces = log.split("Traceback (most recent call last):")
    return [trace for trace in traces if "ClientDisconnect" not in trace]


MESSAGES: dict[str, dict[str, Any]] = {
    "agent_id": {"type": "chat", "message": "m", "agent_id": "@"},
    "task_id": {"type": "cancel", "task_id": "@"},
    "the task of an input": {"type": "input", "task_id": "@", "input_id": "i", "value": 1},
    "input_id": {"type": "input", "task_id": "t", "input_id": "@", "value": 1},
    "task topic": {"type": "subscribe", "topics": ["fine", "task:@"]},
    "agent topic": {"type": "subscribe", "topics": ["agent:@"]},
}


@pytest.mark.parametrize("place", MESSAGES)
def test_odd_ids_in_socket_messages_are_told(pod: Pod, place: str) -> None:
    """Each character in each id of a message: an error for it, and the socket goes on."""
    with open_socket(pod, "odd-ids") as client:
        receive(client)
        for nasty in NASTY:
            odd = json.dumps(around(nasty).decode("utf-8", "replace"))[1:-1]
            client.send(json.dumps({**MESSAGES[place], "ref": "r"}).replace("@", odd))
            answer: dict[str, Any] = receive(client)
            told = (answer["type"], answer["data"]["error_code"])
            # A topic may have more characters than an id, and is looked at first.
            assert told in (("error", "invalid_id"), ("error", "invalid_field")), nasty
            assert "topic" in place or told[1] == "invalid_id", nasty
            assert answer["data"]["ref"] == "r"
        client.send('{"type": "ping", "ref": "still here"}')
        assert receive(client)["data"]["ref"] == "still here"
