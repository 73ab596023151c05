"""A pod that stops, and sockets that grow old: every client is asked to come back, and not all at once."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
import uvloop
from websockets.exceptions import InvalidStatus

from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, Pod, get, wait_for
from tests.support.talk import close_code, open_socket, receive, receive_logged, receive_other, silent

LIST = "orchestrator:acme:callbacks"
FOR_EVER = "600"  # nobody waits for it: a test that would ends by its time limit
SLOWNESS_S = 5.0  # that a busy machine may add


class Left(NamedTuple):
    """How one socket was sent away."""

    at: float
    reason: str
    after_ms: int
    code: int


Crowd = list[tuple[LeanClient, list[bytes]]]


@asynccontextmanager
async def crowd(pod: Pod, count: int) -> AsyncIterator[Crowd]:
    """Open sockets, each of a session of its own; with what each is told."""

    async def one(number: int) -> tuple[LeanClient, list[bytes]]:
        said: list[bytes] = []
        path = f"/ws/crowd-{number}?tenant_id=acme&tenant_tier=free"
        client = await connect(pod.port, path, said.append)
        assert client is not None
        return client, said

    clients = await asyncio.gather(*[one(number) for number in range(count)])
    try:
        yield clients
    finally:
        for client, _said in clients:  # or uvloop never ends
            client.drop()
        await asyncio.wait([client.lost for client, _said in clients])


async def all_left(clients: Crowd, within_s: float) -> list[Left]:
    """Wait until all are closed; the last thing that each was told has to be a ``reconnect``."""

    async def one(client: LeanClient, said: list[bytes]) -> Left:
        code = await client.lost
        at = time.monotonic()
        message = json.loads(said[-1])
        assert message["type"] == "reconnect"
        return Left(at, message["data"]["reason"], message["data"]["after_ms"], code)

    async with asyncio.timeout(within_s):
        return sorted(await asyncio.gather(*[one(client, said) for client, said in clients]))


def exit_status(pod: Pod, within_s: float) -> int:
    """Wait until a pod that was told to stop has stopped."""
    assert pod.popen is not None
    return pod.popen.wait(within_s)


def draining(pod: Pod) -> bool:
    """Whether ``/readyz`` says so."""
    return get(f"{pod.url}/readyz") == (503, {"status": "not_ready", "reason": "draining"})


def headers(session_id: str) -> dict[str, str]:
    """Of ``POST /api/chat/send``."""
    return {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Session-ID": session_id, "X-Agent-ID": "a"}


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """Valkey keeps its sockets open and answers nobody."""
    cluster.valkey.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.valkey.signal(signal.SIGCONT)


def test_unready_at_once_and_working_until_its_time(tmp_path: Path) -> None:
    """After SIGTERM load balancers are told, and everything goes on; a second SIGTERM ends it at once."""
    with (
        Cluster(tmp_path, pods=1, DRAIN_READINESS_S=FOR_EVER, DRAIN_TIMEOUT_S=FOR_EVER) as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
        ExitStack() as stack,
    ):
        pod = cluster.pods[0]
        sockets = [stack.enter_context(open_socket(pod, f"s{n}")) for n in range(3)]
        for client in sockets:
            receive(client)
        pod.signal(signal.SIGTERM)
        took = wait_for(lambda: draining(pod), "/readyz says draining", SLOWNESS_S)

        aes.lpush(LIST, callback("acme", "s0", "while-draining"))
        assert receive_logged(sockets[0], 1)[0]["task_id"] == "while-draining"
        sockets[0].send('{"type": "chat", "message": "hello", "ref": 1}')
        assert receive(sockets[0])["type"] == "ack"
        request = urllib.request.Request(f"{pod.url}/api/chat/send", b'{"message": "hi"}', headers("s1"))
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
        with pytest.raises(InvalidStatus) as refused:
            open_socket(pod, "newcomer")
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "1"
        assert b'"error_code":"draining"' in refused.value.response.body

        began = time.monotonic()
        pod.signal(signal.SIGTERM)
        for client in sockets:
            message = receive_other(client)
            assert (message["type"], message["data"]["reason"]) == ("reconnect", "the pod restarts")
            assert close_code(client) == 1012
        assert exit_status(pod, SLOWNESS_S) == 0
        print(f"\nunready after {took * 1000:.0f} ms, gone {time.monotonic() - began:.1f} s after the second")


def test_a_second_signal_hurries_the_closing(tmp_path: Path) -> None:
    """Also where sockets are being closed already, and whichever signal it is."""
    with Cluster(tmp_path, pods=1, DRAIN_TIMEOUT_S=FOR_EVER) as cluster:
        pod = cluster.pods[0]

        async def hurry() -> list[Left]:
            async with crowd(pod, 20) as clients:
                pod.signal(signal.SIGTERM)
                everyone = [client.lost for client, _said in clients]
                async with asyncio.timeout(SLOWNESS_S):
                    await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
                assert sum(lost.done() for lost in everyone) < 20
                pod.signal(signal.SIGINT)
                return await all_left(clients, SLOWNESS_S)

        assert {left.code for left in uvloop.run(hurry())} == {1012}
        assert exit_status(pod, SLOWNESS_S) == 0


def test_sockets_are_closed_evenly(tmp_path: Path) -> None:
    """After the wait for load balancers, over the whole budget, each with a wait of its own; then exit 0."""
    readiness_s, budget_s, count = 1.0, 4.0, 60
    with Cluster(
        tmp_path,
        pods=1,
        DRAIN_READINESS_S=str(readiness_s),
        DRAIN_TIMEOUT_S=str(budget_s),
        RECONNECT_JITTER_S="0.5",
    ) as cluster:
        pod = cluster.pods[0]

        async def drain() -> tuple[float, list[Left]]:
            async with crowd(pod, count) as clients:
                began = time.monotonic()
                pod.signal(signal.SIGTERM)
                return began, await all_left(clients, readiness_s + budget_s + SLOWNESS_S)

        began, left = uvloop.run(drain())
        assert exit_status(pod, SLOWNESS_S) == 0
        took = time.monotonic() - began
        assert took < readiness_s + budget_s + SLOWNESS_S
        assert not any(json.loads(line)["level"] == "error" for line in pod.output.splitlines())

    times = [one.at - began for one in left]
    assert {(one.code, one.reason) for one in left} == {(1012, "the pod restarts")}
    assert times[0] >= readiness_s
    assert times[-1] - times[0] > 0.6 * budget_s
    fullest = max(sum(at <= other < at + 0.2 * budget_s for other in times) for at in times)
    assert fullest <= 0.4 * count
    waits = [one.after_ms for one in left]
    assert 0 <= min(waits) <= max(waits) <= 500
    assert max(waits) - min(waits) > 100
    print(f"\nclosed from {times[0]:.1f} to {times[-1]:.1f} s, {fullest} of {count} in the fullest fifth")


def test_an_ack_comes_before_the_goodbye(tmp_path: Path) -> None:
    """A chat that waits for Redis when the pod is told to stop is acked, and its socket closed after that."""
    with (
        Cluster(tmp_path, pods=1, DRAIN_TIMEOUT_S="5") as cluster,
        ExitStack() as stack,
    ):
        pod = cluster.pods[0]
        busy, idle = (stack.enter_context(open_socket(pod, name)) for name in ("busy", "idle"))
        for client in (busy, idle):
            receive(client)
        with frozen(cluster):
            busy.send('{"type": "chat", "message": "hello", "ref": "in flight"}')
            busy.send('{"type": "ping"}')
            assert receive(busy)["type"] == "pong"  # so the chat has been read
            pod.signal(signal.SIGTERM)
            assert receive(idle)["type"] == "reconnect"  # so sockets are being closed
        message = receive_other(busy)
        assert (message["type"], message["data"].get("ref")) == ("ack", "in flight")
        assert receive_other(busy)["type"] == "reconnect"
        assert close_code(busy) == 1012
        assert exit_status(pod, SLOWNESS_S) == 0


def test_a_request_is_answered_before_the_end(tmp_path: Path) -> None:
    """A send over HTTP that waits for Redis when the pod stops is answered, though nobody else is there."""
    with Cluster(tmp_path, pods=1, REDIS_TIMEOUT_S="20") as cluster:
        pod = cluster.pods[0]
        body = b'{"message": "hi"}'
        head = "".join(f"{name}: {value}\r\n" for name, value in headers("s").items())
        request = f"POST /api/chat/send HTTP/1.1\r\nHost: h\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", pod.port), 20) as client:
            with frozen(cluster):
                client.sendall(request.encode() + body)
                for _ in range(3):
                    assert get(f"{pod.url}/livez")[0] == 200  # so the request has been read
                pod.signal(signal.SIGTERM)
                wait_for(lambda: get(f"{pod.url}/livez")[0] == 0, "nobody listens", 2 + SLOWNESS_S)
                with pytest.raises(subprocess.TimeoutExpired):  # it waits, as long as it is allowed to
                    exit_status(pod, 0.5)
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert exit_status(pod, SLOWNESS_S) == 0


def test_nothing_twice_for_a_client_without_a_cursor(tmp_path: Path) -> None:
    """What a drained socket was sent is noted before it is closed, so the next pod does not send it again."""
    with (
        Cluster(tmp_path, MARK_SENT_INTERVAL_S="10", RECONNECT_JITTER_S="0") as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
    ):
        first, second = cluster.pods
        with open_socket(first, "s") as client:
            receive(client)
            for number in range(5):
                aes.lpush(LIST, callback("acme", "s", f"t{number}"))
            receive_logged(client, 5)
            first.signal(signal.SIGTERM)
            assert receive(client)["type"] == "reconnect"
            with open_socket(second, "s") as again:
                assert receive(again)["data"]["resume"]["status"] == "fresh"
                assert silent(again)
            assert close_code(client) == 1012
        assert exit_status(first, SLOWNESS_S) == 0


def test_without_sockets_only_load_balancers_are_waited_for(tmp_path: Path) -> None:
    """The readiness wait is kept, the pacing is not; and the cluster knows at once that the pod has gone."""
    with Cluster(tmp_path, DRAIN_READINESS_S="1", DRAIN_TIMEOUT_S=FOR_EVER) as cluster:
        first, second = cluster.pods
        began = time.monotonic()
        first.signal(signal.SIGTERM)
        assert exit_status(first, 1 + SLOWNESS_S) == 0
        assert time.monotonic() - began >= 1.0
        assert len(get(f"{second.url}/ws/stats")[1]["pods"]) == 1


def test_ctrl_c_is_quick(tmp_path: Path) -> None:
    """Who presses Ctrl-C at a terminal does not wait for load balancers, nor for the pace."""
    with Cluster(tmp_path, pods=1, DRAIN_READINESS_S=FOR_EVER, DRAIN_TIMEOUT_S=FOR_EVER) as cluster:
        pod = cluster.pods[0]

        async def interrupt() -> list[Left]:
            async with crowd(pod, 20) as clients:
                pod.signal(signal.SIGINT)
                return await all_left(clients, 1 + SLOWNESS_S)

        assert {left.code for left in uvloop.run(interrupt())} == {1012}
        assert exit_status(pod, SLOWNESS_S) == 0


def test_old_sockets_are_asked_to_come_back(tmp_path: Path) -> None:
    """Those that came together go at different times around the greatest age."""
    count, age_s = 40, 2.0
    with Cluster(tmp_path, pods=1, CONNECTION_MAX_AGE_S=str(age_s), HEARTBEAT_S="0.2") as cluster:

        async def grow_old() -> tuple[float, list[Left]]:
            began = time.monotonic()
            async with crowd(cluster.pods[0], count) as clients:
                return began, await all_left(clients, 1.2 * age_s + SLOWNESS_S)

        began, left = uvloop.run(grow_old())
    ages = [one.at - began for one in left]
    assert {(one.code, one.reason) for one in left} == {(1012, "the connection has reached its greatest age")}
    assert ages[0] >= 0.8 * age_s
    assert ages[-1] - ages[0] > 0.15 * age_s
    assert len({one.after_ms for one in left}) > 1
    print(f"\nasked to come back {ages[0]:.2f} to {ages[-1]:.2f} s after they came")
