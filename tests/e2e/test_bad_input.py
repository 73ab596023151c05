"""Whatever clients and producers send: a clear error or a dead letter, and everybody else goes on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import pytest
import redis

from tests.support.accounting import callback
from tests.support.processes import Cluster, Pod, wait_for
from tests.support.talk import close_code, open_socket, receive, receive_logged

LIST = "orchestrator:acme:callbacks"
DEAD = "ao:{orchestrator:acme:callbacks}:dead"

FRAMES: list[tuple[str, str | bytes, str]] = [
    ("not JSON", "nope", "not_json"),
    ("JSON but not an object", "[1, 2]", "not_an_object"),
    ("no type", "{}", "unknown_type"),
    ("unknown type", '{"type": "dance"}', "unknown_type"),
    ("type of the wrong kind", '{"type": 7}', "unknown_type"),
    ("binary frame", b"\x00\x01", "not_text"),
    ("1 MB frame", "x" * 1_000_000, "message_too_large"),
    ("deeply nested", '{"type": "chat", "user_info": ' + '{"a":' * 10_000, "invalid_field"),
    ("chat without a message", '{"type": "chat"}', "invalid_field"),
    ("chat with an empty message", '{"type": "chat", "message": ""}', "invalid_field"),
    ("chat of 4,001 characters", json.dumps({"type": "chat", "message": "x" * 4001}), "invalid_field"),
    ("chat to a malformed agent", '{"type": "chat", "message": "m", "agent_id": "{a}"}', "invalid_id"),
    ("ack of the future", '{"type": "ack", "seq": 99}', "invalid_field"),
    ("ack of the wrong type", '{"type": "ack", "seq": "1"}', "invalid_field"),
]


def test_each_bad_frame_is_answered_and_the_socket_goes_on(cluster: Cluster, aes: redis.Redis) -> None:
    """One socket takes every bad frame, is told what was wrong each time, and still gets its messages."""
    with open_socket(cluster.pods[0], "frames") as socket:
        receive(socket)
        for name, frame, error_code in FRAMES:
            socket.send(frame)
            answer = receive(socket)
            assert answer["type"] == "error", name
            assert answer["data"]["error_code"] == error_code, name
            assert answer["data"]["error"], name
        aes.lpush(LIST, callback("acme", "frames", "after-all"))
        assert receive_logged(socket, 1)[0]["task_id"] == "after-all"
    print(f"\n{len(FRAMES)} bad frames, {len(FRAMES)} errors, the socket went on")


def test_a_client_that_keeps_sending_binary_is_closed(cluster: Cluster) -> None:
    """Ten messages that are no text end the socket with 4505: come back only when mended."""
    with open_socket(cluster.pods[0], "binary") as socket:
        receive(socket)
        for _ in range(10):
            socket.send(b"binary")
        assert close_code(socket) == 4505


@pytest.mark.parametrize(
    ("session_id", "query", "code"),
    [
        ("s", {"tenant_id": ""}, "invalid_id"),
        ("s", {"tenant_id": "a{b}"}, "invalid_id"),
        ("s", {"tenant_id": "x" * 129}, "invalid_id"),
        ("s%20s", {}, "invalid_id"),
        ("s", {"user_id": "u u"}, "invalid_id"),
        ("s", {"agent_id": "a:b"}, "invalid_id"),
        ("s", {"tenant_tier": "gold"}, "unknown_tier"),
        ("s", {"cursor": "yesterday"}, "invalid_cursor"),
    ],
)
def test_bad_handshakes_are_told_over_the_socket(
    cluster: Cluster, session_id: str, query: dict[str, str], code: str
) -> None:
    """Missing or malformed ids, tier and cursor: an error that a browser can read, then 4504."""
    with open_socket(cluster.pods[0], session_id, headers=None, **query) as socket:
        message = receive(socket)
        assert (message["type"], message["data"]["error_code"]) == ("error", code)
        assert close_code(socket) == 4504


def post(pod: Pod, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """POST /api/chat/send; a header of "" is left out."""
    given = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Session-ID": "s", "X-Agent-ID": "a"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"{pod.url}/api/chat/send", body, {name: value for name, value in given.items() if value}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.headers["content-type"] != "application/problem+json":
                pytest.fail(f"an error that is no problem document: {error.headers}")
            return error.code, json.load(error)


GOOD = b'{"message": "hello"}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"nope", {}, 400, "not_json"),
        (b"[]", {}, 422, "not_an_object"),
        (b'{"message": 7}', {}, 422, "invalid_field"),
        (b'{"message": "' + b"x" * 1_000_000 + b'"}', {}, 413, "message_too_large"),
        (GOOD, {"X_Tenant_ID": ""}, 400, "missing_id"),
        (GOOD, {"X_Session_ID": "a b"}, 400, "invalid_id"),
        (GOOD, {"X_Agent_ID": ""}, 400, "missing_id"),
        (GOOD, {"X_Tenant_Tier": "gold"}, 400, "unknown_tier"),
        (GOOD, {"X_Task_Timeout": "soon"}, 400, "invalid_field"),
        (GOOD, {"X_Context_Type": "party"}, 400, "invalid_field"),
    ],
)
def test_bad_sends_are_problem_documents(
    cluster: Cluster, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """Every bad send is refused with a status, a code and a text."""
    answer_status, problem = post(cluster.pods[0], body, **headers)
    assert (answer_status, problem["error_code"]) == (status, code)
    assert problem["detail"]


FIELDS = [
    "action_id", "action_type", "task_id", "tenant_id", "tenant_tier", "session_id", "status",
    "result", "execution_time", "tokens_used", "timestamp", "execution_context", "metadata", "queue_metadata",
]  # fmt: skip


def test_each_bad_callback_is_buried_or_delivered_and_the_router_goes_on(
    cluster: Cluster, aes: redis.Redis
) -> None:
    """Not JSON, no session, 2 MB, a wrong type in every field: all accounted for, others delivered."""
    good = json.loads(callback("acme", "poison", "good"))
    poison: list[str | bytes] = ["nope", "[]", b"\xff\xfe", json.dumps({**good, "session_id": None})]
    poison.append(json.dumps({**good, "result": {"response": "x" * 2_000_000}}))
    poison.append(json.dumps({**good, "tenant_id": "another"}))
    for field in FIELDS:
        for wrong in (7, "!wrong!", [1], {"a": 1}, True):
            poison.append(json.dumps({**good, "action_id": f"{field}{wrong}", field: wrong}))
    before = aes.xlen(DEAD)
    with open_socket(cluster.pods[0], "poison") as socket:
        receive(socket)
        aes.lpush(LIST, *poison)
        aes.lpush(LIST, callback("acme", "poison", "the-last"))
        delivered = 0
        while True:
            message = receive(socket)
            if message["type"] == "ping":  # the wheel may come round at any moment
                continue
            assert message["type"] in {"agent_response", "error"}
            if message["task_id"] == "the-last":
                break
            delivered += 1
    wait_for(lambda: aes.llen(LIST) == 0, "the list is empty")
    with redis.Redis(port=cluster.redis_port) as raw:  # what became a dead letter need not be text
        dead = raw.xrange(DEAD)[before:]
    reasons = Counter(fields[b"reason"].decode() for _, fields in dead)
    assert delivered + len(dead) == len(poison)
    assert {"not_json", "no_session", "too_large", "wrong_tenant", "wrong_type"} <= reasons.keys()
    print(f"\n{len(poison)} odd callbacks: {delivered} delivered, dead letters {dict(reasons)}")
