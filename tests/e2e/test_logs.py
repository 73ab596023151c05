"""What real processes log: never a secret, at another level when they are told, and without waiting."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import InvalidStatus

from backplane.settings import Settings
from gateway.tokens import issue_token
from tests.support.event_source import Stream, events_path
from tests.support.follow_trace import Traced
from tests.support.processes import Process, get, post, wait_for
from tests.support.talk import close_code, open_socket, receive, receive_ends

KEY = "s3cret-signing-key-of-at-least-thirty-two-bytes"
SECRET = "s3cret"
WORDS = f"my password is {SECRET}"
WHO = {"X-Agent-ID": "agent-1"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """Processes that want tokens, and log all they do."""
    folder = tmp_path_factory.mktemp("logs")
    more: dict[str, Any] = {"AUTH": "jwt", "JWT_SECRET": KEY, "ACCESS_LOG": "1", "MESSAGE_MAX_BYTES": "2000"}
    with Traced(folder, **more) as cluster:
        yield cluster


def token(**more: Any) -> str:
    said = {"tenant_id": "acme", "tier": "free", **more}
    return issue_token(Settings(jwt_secret=KEY), time.time(), **said)


def operator() -> dict[str, str]:
    return bearer(token(tenant_id="*", scopes=["admin"]))


def bearer(of: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {of}"}


def logged(process: Process, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.output.splitlines() if f'"{event}"' in line]
    return [line for line in lines if line["event"] == event]


def raw(port: int, data: bytes) -> None:
    """Say something that is no HTTP, and read what comes."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.settimeout(1)
        connection.recv(65_536)


def test_no_secret_is_logged(running: Traced) -> None:
    """Tokens, what people and agents say, queries, and what strangers make up: not at any level."""
    pod, other = running.pods
    mine = token(sessions=["s-1"], user_id="ann")
    told = [KEY, SECRET, mine, mine.rpartition(".")[2]]

    with open_socket(pod, "s-1", tenant_id="acme", token=mine, stream="1", x=SECRET) as client:
        receive(client)
        client.send(json.dumps({"type": "chat", "ref": 1, "message": WORDS, "user_info": {"pin": SECRET}}))
        receive_ends(client, 2)
        client.send(f'{{"type": "{SECRET}"}}')
        client.send(f"not json {SECRET}")
        client.send(SECRET.encode())
        client.send("x" * 3000 + SECRET)
        client.send(json.dumps({"type": "auth", "token": f"{SECRET}.{SECRET}.{SECRET}"}))
        client.send(json.dumps({"type": "subscribe", "topics": [f"type:{SECRET} no topic"]}))
        client.send(json.dumps({"type": "ping", "ref": "end"}))
        while receive(client)["type"] != "pong":
            pass
    with open_socket(pod, "s-2", token=f"{mine}{SECRET}") as client:
        assert close_code(client) == 4501
    with pytest.raises(InvalidStatus):
        open_socket(pod, "s-1/x", token=mine).close()
    url = f"{other.url}/api/chat/send"
    headers = {**WHO, **bearer(mine), "X-Session-ID": "s-1", "Idempotency-Key": SECRET}
    assert post(url, {"message": WORDS}, headers=headers)[0] == 200
    assert post(url, {"message": f"{WORDS} other"}, headers=headers)[0] == 409
    assert post(f"{url}?token={mine}", {"message": 7, "x": SECRET}, headers=headers)[0] == 422
    assert post(url, {"message": WORDS}, headers={**headers, **bearer(f"{mine}x")})[0] == 401
    assert post(url, {"message": WORDS}, headers={**headers, "X-Session-ID": f"{SECRET} no id"})[0] == 400
    assert get(f"{other.url}/{SECRET}?{SECRET}")[0] == 404
    assert get(f"{other.url}/api/chat/tasks/{SECRET}%20", headers=bearer(mine))[0] in (400, 404)
    with Stream(other.port, events_path("s-1", tenant_id=None, token=mine, stream="1")) as stream:
        stream.messages(1)
    raw(pod.port, b"%b\r\n\r\n" % SECRET.encode())
    raw(pod.port, b"GET /ws/s-1?token=%b HTTP/1.1\r\nHost: h\r\n\r\n" % mine.encode())
    raw(pod.port, b"GET / HTTP/1.1\r\nHost: h\r\n%b : x\r\n\r\n" % SECRET.encode())

    base = {"task_id": "t-9", "session_id": "s-1", "tenant_id": "acme"}
    bad: list[Any] = [
        {**base, "status": SECRET},
        {**base, "status": "failed", "result": {"error": WORDS}},
        {**base, "status": "completed", "result": {"response": {"a": SECRET}}},
        {**base, "tenant_id": SECRET},
        {**base, "action_type": SECRET},
        {**base, "traceparent": SECRET},
        {"session_id": f"{SECRET} no id"},
        SECRET,
    ]
    with redis.Redis(port=running.redis_port) as aes:
        aes.lpush("orchestrator:acme:callbacks", *[json.dumps(one) for one in bad], f"no json {SECRET}")
        aes.lpush("nooble4:dev:agent_execution_service:actions:free", json.dumps({"message": WORDS}), WORDS)
        wait_for(lambda: aes.llen("orchestrator:acme:callbacks") == 0, "callbacks moved")
    wait_for(lambda: logged(running.agent, "action_unreadable") != [], "the agent's word")
    wait_for(lambda: logged(running.routers[0], "callbacks_unusable") != [], "the router's word")

    for name, process in running.named.items():
        found = [line for line in process.output.splitlines() if any(secret in line for secret in told)]
        assert not found, (name, found[:3])
    events = {
        event
        for process in running.named.values()
        for line in process.output.splitlines()
        for event in [json.loads(line)["event"]]
    }
    assert events >= {
        "connection_opened", "connection_closed", "message_accepted", "message_refused", "action_pushed",
        "message_delivered", "callback_moved", "callbacks_unusable", "action_unreadable", "socket_refused",
        "http_request", "action_taken",
    }  # fmt: skip


def test_signals(running: Traced) -> None:
    """SIGUSR1 is debug, SIGUSR2 what is configured (debug here); an administrator may say another."""
    pod = running.pods[0]
    may = operator()
    request = {"level": "info", "for_s": 600}
    assert put(pod.url, request, may)["level"] == "info"
    pod.signal(signal.SIGUSR1)
    wait_for(lambda: get(f"{pod.url}/api/admin/log-level", headers=may)[1]["level"] == "debug", "debug")
    assert 590 < get(f"{pod.url}/api/admin/log-level", headers=may)[1]["left_s"] <= 600
    assert put(pod.url, {"level": "warning"}, may)["left_s"] is None
    for process in running.named.values():
        process.signal(signal.SIGUSR2)
    wait_for(lambda: get(f"{pod.url}/api/admin/log-level", headers=may)[1]["level"] == "debug", "debug")
    for process in running.named.values():
        wait_for(lambda process=process: logged(process, "log_level_changed") != [], "a word")  # type: ignore[misc]
    assert [line["to"] for line in logged(pod, "log_level_changed")] == ["info", "debug", "warning", "debug"]


def put(url: str, body: Any, headers: dict[str, str]) -> dict[str, Any]:
    import urllib.request

    request = urllib.request.Request(
        f"{url}/api/admin/log-level", json.dumps(body).encode(), headers, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_a_pod_whose_stdout_nobody_reads(running: Traced, tmp_path: Path) -> None:
    """It serves as before, keeps no more lines than it may, tells how many it lost, and ends cleanly."""
    out, into = os.pipe()
    pod = running.pods[0]
    free = Traced(tmp_path).pods[0]
    environ = {**pod.environ, "ORCHESTRATOR_LOG_LEVEL": "debug"}
    process = subprocess.Popen(free.command, env=environ, stdout=into, stderr=subprocess.DEVNULL)
    os.close(into)
    try:
        wait_for(free.ready, "ready")
        headers = operator()

        def dropped() -> int:
            told = get(f"{free.url}/api/admin/log-level", headers=headers)[1]
            return int(told["lines_dropped"])

        def ask_often() -> bool:
            with socket.create_connection(("127.0.0.1", free.port)) as connection:
                names = f"X-Tenant-ID: {'t' * 128}\r\nX-Session-ID: {'s' * 128}"
                line = f"GET /livez HTTP/1.1\r\nHost: h\r\n{names}\r\n\r\n"
                for _ in range(100):
                    connection.sendall(line.encode() * 10)
                    got = 0
                    while got < 10:
                        got += connection.recv(65_536).count(b"HTTP/1.1 200")
            return dropped() > 0

        wait_for(ask_often, "lines dropped", 60)
        began = time.monotonic()
        assert get(f"{free.url}/livez")[0] == 200
        assert time.monotonic() - began < 1
        lost = dropped()
        text = b""
        while b'"log_lines_dropped"' not in text:
            text += os.read(out, 1_000_000)
        line = next(line for line in text.splitlines() if b'"log_lines_dropped"' in line)
        assert json.loads(line)["count"] >= lost - 5
        process.send_signal(signal.SIGTERM)
        os.set_blocking(out, False)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(out)
