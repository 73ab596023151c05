"""HAProxy and nginx, the real programs with the files of deploy/loadbalancer/, before real and fake pods."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis
from websockets.sync.client import connect

from backplane.settings import Settings
from tests.support.accounting import callback
from tests.support.event_source import Cut, Stream, events_path
from tests.support.loadbalancers import BALANCERS, Balancer, HAProxy, Nginx, Plan, rolled
from tests.support.processes import Cluster, free_port, get, wait_for
from tests.support.processes import post as post_json
from tests.support.talk import receive, receive_logged

OPERATORS_ONLY = (
    "/metrics",
    "/ws/stats",
    "/api/chat/stats",
    "/health/detailed",
    "/api/admin/connections",
)
SECRET = "not-for-the-log"
BODY_MAX = 64 * 1024
EVENTS = 5


@pytest.fixture(params=list(BALANCERS))
def kind(request: pytest.FixtureRequest) -> type[Balancer]:
    """One balancer after the other; one that is missing is a failure."""
    kind = BALANCERS[request.param]
    kind.program()
    return kind


# Pretended pods.


@dataclass
class Seen:
    """A request as it reached a pod."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        """Of the target, as a pod's HTTP server reads it."""
        return unquote(re.split("[?#]", re.sub("^https?://[^/]*", "", self.target))[0])

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Pretended:
    """A pod that says what a test wants, and remembers what it was asked (but for its readiness)."""

    port: int = 0
    upgrade_status: int = 101
    post_status: int = 200
    """0: closes the connection in place of an answer."""
    chunked: bool = True
    """How an event stream is framed; else it ends with its connection."""
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by the client for each event that it has; the next one is held back until then."""
    seen: list[Seen] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pod: Pretended

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self._answer(200)
            return
        seen = self._note(b"")
        if seen.header("Upgrade"):
            self._upgrade()
        elif seen.path.endswith("/events"):
            self._stream()
        else:
            self._answer(200)

    def do_POST(self) -> None:
        self._note(self.rfile.read(int(self.headers["Content-Length"])))
        if self.pod.post_status:
            self._answer(self.pod.post_status)
        else:
            self.close_connection = True

    def _note(self, body: bytes) -> Seen:
        # Not self.path, which has lost its doubled slashes.
        seen = Seen(self.command, self.requestline.split()[1], self.headers.items(), body)
        self.pod.seen.append(seen)
        return seen

    def _answer(self, status: int) -> None:
        body = b'{"from": "a pretended pod"}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(body)

    def _upgrade(self) -> None:
        self.close_connection = True
        if self.pod.upgrade_status != 101:
            self._answer(self.pod.upgrade_status)
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.send_header("Sec-WebSocket-Extensions", "permessage-deflate")
        self.end_headers()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.close_connection = True
        if self.pod.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(EVENTS):
            self._chunk(b"data: %d\n\n" % number)
            if not self.pod.came.acquire(timeout=15):
                break
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self.pod.chunked else data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a check that was cut off because its balancer stopped."""


@contextmanager
def pretend(pod: Pretended) -> Iterator[Pretended]:
    """Run a pretended pod."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"pod": pod})) as server:
        pod.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield pod
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pod() -> Iterator[Pretended]:
    """The one pod behind `balancer`."""
    with pretend(Pretended()) as running:
        yield running


@pytest.fixture
def balancer(kind: type[Balancer], pod: Pretended, tmp_path: Path) -> Iterator[Balancer]:
    """A balancer before one pretended pod."""
    with kind(tmp_path, [pod.port]) as running:
        yield running


# Clients.


def raw(balancer: Balancer, data: bytes) -> bytes:
    """What is answered to these bytes, the head at least."""
    came = b""
    with socket.create_connection(("127.0.0.1", balancer.port), 10) as client:
        try:
            client.sendall(data)
            while b"\r\n\r\n" not in came and (part := client.recv(65_536)):
                came += part
        except ConnectionError:
            pass  # it has read enough
    return came


def status(answer: bytes) -> int:
    """The status of an answer; 0 if there is none."""
    return int(answer[9:12]) if answer else 0


def head(
    target: str, *lines: str, opening: bool = True, method: str = "GET", host: str = "chat.example.com:8443"
) -> bytes:
    """The head of a request, with ``opening`` of one that wants to become a socket."""
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    rest = (*(upgrade if opening else ("Connection: close",)), *lines, "", "")
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *rest)).encode()


def post(body: bytes, target: str = "/api/chat/send") -> bytes:
    """A whole POST."""
    return head(target, f"Content-Length: {len(body)}", opening=False, method="POST") + body


# The files.


def test_its_program_accepts_the_file(kind: type[Balancer], tmp_path: Path) -> None:
    """`haproxy -c` and `nginx -t` have no complaint."""
    checked = kind(tmp_path, [8081, 8082, 8083]).check()
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    assert "warn" not in said.lower(), said


def test_the_numbers_fit_the_pods() -> None:
    """What the comments promise of time-outs and limits holds for the pods' defaults."""
    haproxy, nginx, pods = HAProxy.shipped.read_text(), Nginx.shipped.read_text(), Settings()

    def number(pattern: str, text: str) -> int:
        found = re.search(rf"^ *{pattern}", text, re.MULTILINE)
        assert found is not None, pattern
        return int(found[1])

    location = nginx[nginx.index("location ~ ^/ws/ {") :]
    assert number(r"timeout tunnel (\d+)s", haproxy) == 3 * pods.heartbeat_s
    assert number(r"proxy_read_timeout (\d+)s", location) == 3 * pods.heartbeat_s
    assert number(r"send_timeout (\d+)s", nginx) > pods.slow_consumer_timeout_s
    noticed_ms = number(r"default-server inter (\d+)s", haproxy) * 1000
    noticed_ms += number(r"default-server inter .* fastinter (\d+)ms fall 2 ", haproxy)
    assert noticed_ms <= 1000 * pods.drain_readiness_s / 2
    assert number(r"http-request return status 413 .* gt (\d+)", haproxy) == pods.message_max_bytes
    assert number(r"client_max_body_size (\d+)k", nginx) * 1024 == pods.message_max_bytes


# What reaches a pod, and what does not.


@pytest.mark.parametrize("opening", [True, False], ids=["socket", "request"])
def test_a_client_cannot_say_who_it_is(balancer: Balancer, pod: Pretended, opening: bool) -> None:
    """A pod is told the peer's address, whatever the request claims."""
    claims = (
        "X-Forwarded-For: 66.66.66.66",
        "x-forwarded-for: 66.66.66.66, 127.0.0.1",
        "X-Forwarded-Proto: ftp66",
        "X-Forwarded-Host: 66.example.com",
        "X-Forwarded-Port: 6666",
        "X-Real-IP: 66.66.66.66",
        "Forwarded: for=66.66.66.66",
    )
    answer = raw(balancer, head("/ws/s" if opening else "/api/chat/tasks/t", *claims, opening=opening))
    assert status(answer) == (101 if opening else 200)
    (seen,) = pod.seen
    assert seen.header("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.header("X-Forwarded-Proto") == ["http"]
    assert "66" not in str(seen.headers)


def test_what_an_opening_offers_passes(balancer: Balancer, pod: Pretended) -> None:
    """Extensions, subprotocols with the token in them and the Host with its port; and the answer's choice."""
    offers = ("Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: a.v1, bearer.xyz")
    answer = raw(balancer, head("/ws/s?cursor=e:1&token=t", *offers))
    assert status(answer) == 101
    assert b"sec-websocket-extensions: permessage-deflate\r\n" in answer.lower()
    (seen,) = pod.seen
    assert seen.target == "/ws/s?cursor=e:1&token=t"
    assert seen.header("Host") == ["chat.example.com:8443"]
    assert seen.header("Sec-WebSocket-Extensions") == ["permessage-deflate"]
    assert seen.header("Sec-WebSocket-Protocol") == ["a.v1, bearer.xyz"]


def test_no_other_protocol_is_asked_for(balancer: Balancer, pod: Pretended) -> None:
    """An upgrade to h2c reaches a pod as an ordinary request."""
    wanted = head("/ws/s", "HTTP2-Settings: AAMAAABkAAQAAP__").replace(b"websocket", b"h2c", 1)
    assert status(raw(balancer, wanted)) == 200
    (seen,) = pod.seen
    assert not seen.header("Upgrade")


@pytest.mark.parametrize("opening", [True, False], ids=["socket", "request"])
def test_what_is_for_operators_stays_inside(balancer: Balancer, pod: Pretended, opening: bool) -> None:
    """However it is spelled, no such address reaches a pod as what it is."""
    for path in OPERATORS_ONLY:
        escaped = path[:-1] + f"%{ord(path[-1]):x}"
        for target in (
            path,
            f"{path}?a=b",
            f"{path}#a",
            f"http://pod{path}",
            escaped,
            f"{escaped}?a=/ws/s",
            f"{path}%3fa",
            f"/{path}",
            f"/ws/..{path}",
            f"/ws/%2e%2e{path}",
            f"/health/..{path}",
            path.replace("/", "/%2f"),
            path.upper(),
        ):
            answer = raw(balancer, head(target, opening=opening))
            if not pod.seen:
                assert status(answer) in {400, 403, 404}, target
            assert path not in {seen.path for seen in pod.seen}, target
            pod.seen.clear()
    for path in ("/", "/readyz", "/livez", "/anything", "/ws", "/api"):
        assert status(raw(balancer, head(path, opening=opening))) == 404
    assert not pod.seen


def test_sizes(balancer: Balancer, pod: Pretended) -> None:
    """What a pod takes gets through; a body over its limit is refused at the door."""
    assert status(raw(balancer, post(b"x" * BODY_MAX))) == 200
    assert len(pod.seen[0].body) == BODY_MAX
    answer = raw(balancer, post(b"x" * (BODY_MAX + 1)))
    assert status(answer) == 413
    assert b"application/problem+json" in answer
    assert status(raw(balancer, head("/api/chat/tasks/t", f"X-Long: {'x' * 15_800}", opening=False))) == 200
    assert len(pod.seen[1].header("X-Long")[0]) == 15_800
    long = [f"X-Long-{n}: {'x' * 1_000}" for n in range(64)]
    assert status(raw(balancer, head("/api/chat/tasks/t", *long, opening=False))) in {400, 431}
    assert len(pod.seen) == 2


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "plain"])
def test_events_arrive_one_by_one(balancer: Balancer, pod: Pretended, chunked: bool) -> None:
    """An event is not held back for the next one, nor compressed."""
    pod.chunked = chunked
    client = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=10)
    try:
        client.request("GET", "/api/chat/sessions/s/events", headers={"Accept-Encoding": "gzip"})
        answer = client.getresponse()
        assert answer.getheader("Content-Encoding") is None
        delays_s = []
        for number in range(EVENTS):
            asked_at = time.monotonic()
            assert answer.readline() == b"data: %d\n" % number
            assert answer.readline() == b"\n"
            delays_s.append(time.monotonic() - asked_at)
            pod.came.release()  # only now it sends the next one
        assert answer.read() == b""
        assert min(delays_s[1:]) < 0.1, "each event waits for a full packet, or for a timer"
    finally:
        client.close()


# What is made again.


@pytest.mark.parametrize("post_status", [503, 0], ids=["503", "no answer"])
def test_a_post_is_not_sent_twice(kind: type[Balancer], tmp_path: Path, post_status: int) -> None:
    """Where a pod may have acted on it: it answered 503, or took it and went away."""
    one, other = Pretended(post_status=post_status), Pretended(post_status=post_status)
    with pretend(one), pretend(other), kind(tmp_path, [one.port, other.port]) as balancer:
        for number in range(1, 5):
            answer = raw(balancer, post(b"{}", f"/api/chat/send?n={number}"))
            assert status(answer) == (post_status or 502)
            assert (b"retry-after: 7\r\n" in answer.lower()) == (post_status == 503)
            assert len(one.seen) + len(other.seen) == number


def test_a_post_survives_a_pod_that_is_gone(kind: type[Balancer], tmp_path: Path) -> None:
    """A connection that was refused has carried nothing, so the next pod gets the request."""
    with pretend(Pretended()) as alive, kind(tmp_path, [free_port(), alive.port, free_port()]) as balancer:
        for number in range(1, 9):
            assert status(raw(balancer, post(b"{}"))) == 200
            assert len(alive.seen) == number


def test_a_socket_is_opened_on_another_pod(kind: type[Balancer], tmp_path: Path) -> None:
    """A pod that says 503 to new sockets, because it drains, is not noticed by clients."""
    draining, other = Pretended(upgrade_status=503), Pretended()
    with pretend(draining), pretend(other), kind(tmp_path, [draining.port, other.port]) as balancer:
        for _ in range(20):
            assert status(raw(balancer, head("/ws/s"))) == 101
        assert draining.seen
        assert len(other.seen) == 20


def test_no_pod_at_all(kind: type[Balancer], tmp_path: Path) -> None:
    """Whether all refuse or none is there: 503, and when to come back."""
    (tmp_path / "refusing").mkdir()
    with pretend(Pretended(upgrade_status=503)) as pod, kind(tmp_path / "refusing", [pod.port]) as balancer:
        refused = [raw(balancer, head("/ws/s")) for _ in range(4)]
    (tmp_path / "gone").mkdir()
    with kind(tmp_path / "gone", [free_port()]) as balancer:
        refused += [raw(balancer, head("/ws/s")) for _ in range(4)]
    for answer in refused:
        assert status(answer) == 503
        assert b"retry-after: " in answer.lower()


# What is written.


def test_no_query_is_written(kind: type[Balancer], tmp_path: Path) -> None:
    """A token in a query is in no log, whatever becomes of the request; its path is."""
    query = f"?tenant_id=acme&token={SECRET}"
    with pretend(Pretended(post_status=0)) as pod, kind(tmp_path, [free_port(), pod.port]) as balancer:
        requests = [
            head(f"/ws/quiet{query}"),
            head(f"http://pod/ws/quiet{query}"),
            head(f"/nowhere{query}"),
            head(
                f"/ws/quiet{query}", f"Referer: http://pod/ws/quiet{query}", *["X-Long: " + "x" * 9_000] * 8
            ),
            head(f"/ws/quiet{query} oops"),
            post(b"{}", f"/api/chat/send{query}"),
            post(b"x" * (BODY_MAX + 1), f"/api/chat/send{query}"),
        ]
        for request in requests * 4:
            raw(balancer, request)
    (tmp_path / "gone").mkdir()
    with kind(tmp_path / "gone", [free_port()]) as gone:
        for request in requests:
            raw(gone, request)
    written = balancer.written + gone.written
    assert "/ws/quiet" in written
    assert SECRET not in written
    assert "tenant_id" not in written


# Before real pods.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods whose hearts beat fast."""
    with Cluster(tmp_path_factory.mktemp("cluster"), HEARTBEAT_S="0.5") as running:
        yield running


@pytest.fixture
def front(kind: type[Balancer], cluster: Cluster, tmp_path: Path) -> Iterator[Balancer]:
    """A balancer before them."""
    with kind(tmp_path, [pod.port for pod in cluster.pods]) as running:
        yield running


def test_a_socket_through_the_balancer(front: Balancer, cluster: Cluster) -> None:
    """It is acknowledged, stays while nobody says anything but heartbeats, and gets what is pushed."""
    session_id = f"through-{front.name}"
    url = f"ws://127.0.0.1:{front.port}/ws/{session_id}?tenant_id=acme&tenant_tier=free"
    with connect(url, ping_interval=None) as client, redis.Redis(port=cluster.redis_port) as aes:
        assert receive(client)["type"] == "connection_ack"
        for _ in range(5):  # two silent heartbeats would close it
            assert receive(client)["type"] == "ping"
        aes.lpush("orchestrator:acme:callbacks", callback("acme", session_id, "task-1"))
        (message,) = receive_logged(client, 1)
        assert (message["type"], message["task_id"]) == ("agent_response", "task-1")


def test_a_message_through_the_balancer(front: Balancer, cluster: Cluster) -> None:
    """`POST /api/chat/send` is answered, and its action is in the queue once."""
    session_id = f"sent-{front.name}"
    body = json.dumps({"message": "hello"}).encode()
    lines = (
        "X-Tenant-ID: acme",
        "X-Tenant-Tier: free",
        "X-Agent-ID: agent-1",
        f"X-Session-ID: {session_id}",
        f"Content-Length: {len(body)}",
    )
    asked = head("/api/chat/send", *lines, opening=False, method="POST", host="localhost")
    answer = raw(front, asked + body)
    assert status(answer) == 200
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as aes:
        queue = aes.lrange("nooble4:dev:agent_execution_service:actions:free", 0, -1)
    assert [action["session_id"] for action in map(json.loads, queue)].count(session_id) == 1


# The rolling restart.


@pytest.mark.timeout(240)
def test_rolling_restart(kind: type[Balancer], tmp_path: Path) -> None:
    """All pods are restarted one after the other under traffic; no client notices more than a short gap."""
    plan = Plan(sockets=int(os.environ.get("ROLLING_SOCKETS", "2000")))  # fewer on a small machine
    report = rolled(kind, tmp_path, plan)
    print(f"\n{kind.name}: {report}")
    assert report.sent > plan.sockets
    assert (report.lost, report.doubled, report.out_of_order, report.resets) == (0, 0, 0, 0), report
    assert report.delivered == report.sent
    assert report.most_in_one_second <= 0.20, report
    assert report.longest_outage_s <= plan.budget_s + 5, report
    assert set(report.close_codes) == {1012}, report
    assert report.exit_statuses == [0] * plan.pods


def test_a_stream_through_the_balancer(front: Balancer, cluster: Cluster) -> None:
    """Each event comes at once, heartbeats too, and the token in the address is in no log."""
    session_id, secret = f"stream-{front.name}", "a-token-that-is-not-asked-for"
    with (
        Stream(front.port, events_path(session_id, token=secret), {"Accept-Encoding": "gzip"}) as stream,
        redis.Redis(port=cluster.redis_port) as aes,
    ):
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.messages(1)[0]["type"] == "connection_ack"
        delays_s = []
        for number in range(EVENTS):
            pushed_at = time.monotonic()
            aes.lpush("orchestrator:acme:callbacks", callback("acme", session_id, f"{session_id}.{number}"))
            [event] = stream.logged(1)
            delays_s.append(time.monotonic() - pushed_at)
            assert event.message["task_id"] == f"{session_id}.{number}"
        with pytest.raises(TimeoutError):
            stream.receive(2)
        assert stream.comments >= 3
    print(f"\n{front.name}: an event took {max(delays_s) * 1000:.0f} ms at most from the push to the client")
    assert min(delays_s) < 0.1
    front.stop(5.0)
    assert secret not in front.written


@pytest.mark.parametrize("path", ["/events", "/events/c-1/stream"])
def test_a_stream_that_breaks_behind_the_balancer(kind: type[Balancer], tmp_path: Path, path: str) -> None:
    """It breaks for the client too: an end would be taken for the end of the answer."""
    (tmp_path / "pods").mkdir()
    (tmp_path / "balancer").mkdir()
    with (
        Cluster(tmp_path / "pods", pods=1) as cluster,
        kind(tmp_path / "balancer", [cluster.pods[0].port]) as front,
    ):
        who = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Session-ID": "s", "X-Agent-ID": "a"}
        wait_for(lambda: get(f"{front.url}/health")[0] == 200, "the balancer has the pod")
        assert post_json(f"{front.url}/api/chat/send", {"message": "hello"}, headers=who)[0] == 200
        address = events_path("s", format="ai-sdk").replace("/events", path)
        with Stream(front.port, address) as stream:
            assert (stream.status, stream.headers["x-vercel-ai-ui-message-stream"]) == (200, "v1")
            cluster.pods[0].kill()
            with pytest.raises(Cut):
                list(iter(stream.receive, None))
