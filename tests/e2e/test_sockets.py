"""A socket's life: heartbeats, silence, a client that does not read, and a pod that stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import uvloop

from tests.support.accounting import callback
from tests.support.lean_client import LeanClient, connect
from tests.support.processes import Cluster, get, wait_for
from tests.support.talk import close_code, open_socket, receive, receive_logged

LIST = "orchestrator:acme:callbacks"


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose heartbeats are short."""
    with Cluster(tmp_path_factory.mktemp("brisk"), HEARTBEAT_S="0.4") as running:
        yield running


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that soon loses its patience with sockets that do not read, and keeps long logs."""
    with Cluster(tmp_path, SLOW_CONSUMER_TIMEOUT_S="1.5", SESSION_LOG_MAX_BYTES=str(64 << 20)) as running:
        yield running


def test_pings_come_and_answers_keep_the_socket(brisk: Cluster) -> None:
    """A ping message per heartbeat; a client whose library answers ping frames stays."""
    with open_socket(brisk.pods[0], "alive") as socket:
        receive(socket)
        for _ in range(6):
            assert receive(socket)["type"] == "ping"


def test_a_silent_socket_is_closed(brisk: Cluster) -> None:
    """A client that answers nothing for two heartbeats is closed with 4002, one that answers pings is not."""

    class Mute(LeanClient):
        def send(self, opcode: int, payload: bytes) -> None:
            if opcode == 8:
                super().send(opcode, payload)

    async def stay_silent() -> int:
        loop = asyncio.get_running_loop()
        path = "/ws/mute?tenant_id=acme&tenant_tier=free"
        _, client = await loop.create_connection(
            lambda: Mute(path, lambda _text: None), "127.0.0.1", brisk.pods[0].port
        )
        try:
            async with asyncio.timeout(10):
                return await client.lost
        finally:
            client.drop()

    assert uvloop.run(stay_silent()) == 4002


def test_a_client_that_does_not_read_is_closed_and_resumes(strict: Cluster) -> None:
    """Closed with 4001; the pod keeps nothing for it, others go on, and its cursor brings the rest."""
    pod, count, size = strict.pods[0], 400, 60_000
    rss = pod.rss_kib()
    seen: list[int] = []

    def note(text: bytes) -> None:
        message = json.loads(text)
        if "seq" in message["metadata"]:
            seen.append(message["metadata"]["seq"])

    async def stall_and_return() -> tuple[int, int]:
        path = "/ws/slow?tenant_id=acme&tenant_tier=free"
        slow = await connect(pod.port, path, note)
        assert slow is not None
        slow.pause()
        try:
            grown = await asyncio.to_thread(push_and_watch)
            slow.resume()
            async with asyncio.timeout(20):
                return await slow.lost, grown
        finally:
            slow.drop()

    def push_and_watch() -> int:
        with (
            redis.Redis(port=strict.redis_port) as aes,
            open_socket(pod, "brisk-reader") as other,
        ):
            receive(other)
            for number in range(count):
                aes.lpush(LIST, callback("acme", "slow", f"t{number}", size))
            aes.lpush(LIST, callback("acme", "brisk-reader", "unhindered"))
            assert receive_logged(other, 1)[0]["task_id"] == "unhindered"
            wait_for(lambda: "4001" in json.dumps(stats(strict)), "the slow socket is given up")
        return pod.rss_kib() - rss

    code, grown = uvloop.run(stall_and_return())
    with open_socket(pod, "slow", cursor=cursor_of(strict, len(seen))) as socket:
        resume = receive(socket)["data"]["resume"]
        rest = [m["metadata"]["seq"] for m in receive_logged(socket, count - len(seen))]
    print(f"\nclosed with {code} after {len(seen)} of {count}, the pod grew by {grown} KiB")
    assert code == 4001
    assert resume["status"] == "replayed"
    assert seen + rest == list(range(1, count + 1))
    assert grown < 8 * 1024


def stats(cluster: Cluster) -> object:
    """``/ws/stats`` of the first pod."""
    return get(f"{cluster.pods[0].url}/ws/stats")[1]


def cursor_of(cluster: Cluster, seq: int) -> str:
    """A cursor in the slow session's log."""
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as client:
        return f"{client.hget('ao:{orchestrator:acme:callbacks}:s:slow', 'e')}:{seq}"


def test_sigterm_says_come_back_and_ends_with_zero(tmp_path: Path) -> None:
    """On SIGTERM a pod asks its clients to reconnect, closes them with 1012, and exits with status 0."""
    with Cluster(tmp_path) as cluster:
        pod = cluster.pods[0]
        with open_socket(pod, "s") as socket:
            receive(socket)
            assert pod.popen is not None
            pod.popen.terminate()
            message = receive(socket)
            assert message["type"] == "reconnect"
            assert close_code(socket) == 1012
        assert pod.stop() == 0
        assert cluster.routers[0].stop() == 0
        lines = [json.loads(line) for line in pod.output.splitlines()]
        assert lines[-1]["event"] == "pod_stopped"
        assert lines[-1]["clean"] is True
        assert all(line["level"] in {"info", "warning"} for line in lines)
