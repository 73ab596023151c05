"""What a client can make a pod hold before anyone knows who it is, and after."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop

from tests.support.lean_client import connect
from tests.support.processes import Cluster, Pod, get
from tests.support.talk import close_code, open_socket, receive


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A pod that soon loses its patience."""
    folder = tmp_path_factory.mktemp("limits")
    with Cluster(folder, pods=1, HANDSHAKE_TIMEOUT_S="1", SLOW_CONSUMER_TIMEOUT_S="5") as running:
        yield running


def raw(pod: Pod, data: bytes, until: bytes = b"nothing") -> bytes:
    """Send bytes; everything that comes back until the pod closes, or ``until`` has come."""
    with socket.create_connection(("127.0.0.1", pod.port), 8) as client:
        came = b""
        try:
            client.sendall(data)
            while until not in came and (part := client.recv(65_536)):
                came += part
        except ConnectionError:
            pass
        return came


UPGRADE = (
    b"GET /ws/s?tenant_id=acme&tenant_tier=free HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def test_a_silent_connection_is_answered_and_closed(brisk: Cluster) -> None:
    """Neither a connection that says nothing nor one that stops in mid-head stays."""
    for beginning in (b"", b"GET /livez HTTP/1.1\r\nX-Slow: "):
        began = time.monotonic()
        assert b" 408 " in raw(brisk.pods[0], beginning)
        assert 0.5 < time.monotonic() - began < 4


def test_endless_headers_are_refused(brisk: Cluster) -> None:
    """A head over 16 KiB is answered by 431, and the pod does not keep it."""
    pod = brisk.pods[0]
    before = pod.rss_kib()
    line = b"X-Filler: " + b"x" * 1000 + b"\r\n"
    assert b" 431 " in raw(pod, b"GET /livez HTTP/1.1\r\n" + line * 40)
    assert b" 431 " in raw(pod, UPGRADE + line * 40 + b"\r\n")
    raw(pod, b"GET /livez HTTP/1.1\r\n" + line * 30_000)
    assert pod.rss_kib() - before < 4 * 1024


def test_an_upgrade_behind_an_unanswered_request_is_refused(brisk: Cluster) -> None:
    """Or the answer would be written into the socket's frames."""
    came = raw(brisk.pods[0], b"GET /ws/stats HTTP/1.1\r\nHost: h\r\n\r\n" + UPGRADE + b"\r\n")
    assert b" 101 " not in came
    assert b" 400 " in came


def test_answers_that_are_not_read_do_not_pile_up(brisk: Cluster) -> None:
    """A client that asks and asks and never reads is not listened to until it does."""
    pod = brisk.pods[0]
    before = pod.rss_kib()

    async def flood() -> int:
        client = await connect(pod.port, "/ws/flood?tenant_id=acme&tenant_tier=free", lambda _text: None)
        assert client is not None
        client.pause()
        try:
            for _ in range(300):
                for _ in range(500):
                    client.send_text('{"type": "ping"}')
                await asyncio.sleep(0)
            handled = pod.cpu_s()
            while True:  # until the pod has dealt with all that it is going to
                await asyncio.sleep(0.2)
                if pod.cpu_s() - handled < 0.02:
                    break
                handled = pod.cpu_s()
            return pod.rss_kib() - before
        finally:
            client.drop()
            await client.lost

    grown = uvloop.run(flood())
    print(f"\n150,000 unread answers: the pod grew by {grown} KiB")
    assert grown < 8 * 1024


def test_bad_parameters_are_told_over_the_socket(brisk: Cluster) -> None:
    """A browser cannot see why an upgrade was refused, so it is said on an accepted socket, with 4504."""
    for path in ("s?tenant_id=a&tenant_id=b&tenant_tier=free", "s?tenant_id=%zz", "a%2Fb?tenant_id=a"):
        path_line = UPGRADE.replace(b"s?tenant_id=acme&tenant_tier=free", path.encode())
        answer = raw(brisk.pods[0], path_line + b"\r\n", (4504).to_bytes(2, "big"))
        assert b" 101 " in answer, path
        assert b'"type":"error"' in answer, path
        assert (4504).to_bytes(2, "big") in answer, path


def test_a_strangers_page_cannot_use_a_pod_without_tokens(brisk: Cluster) -> None:
    """With AUTH=none a browser on the machine carries any page's connections; only this host's pages may."""
    stranger = raw(brisk.pods[0], UPGRADE + b"Origin: http://evil.example\r\n\r\n", (4503).to_bytes(2, "big"))
    assert b'"error_code":"origin_not_allowed"' in stranger
    assert (4503).to_bytes(2, "big") in stranger


def test_many_broken_heads_leave_the_pod_as_it_was(brisk: Cluster) -> None:
    """Whatever comes instead of a request, the pod answers the next one."""
    for broken in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
    ):
        raw(brisk.pods[0], broken)
    assert get(f"{brisk.pods[0].url}/livez")[0] == 200
    with open_socket(brisk.pods[0], "after") as client:
        assert receive(client)["type"] == "connection_ack"
        client.send("{" * 10)
        assert receive(client)["type"] == "error"
        client.close()
        assert close_code(client) == 1000
