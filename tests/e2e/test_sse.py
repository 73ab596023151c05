"""Event streams with real processes: the same log and the same messages as a socket, and the same bounds."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from backplane.settings import Settings
from gateway.tokens import issue_token
from tests.e2e.test_streams import WORDS, Agent, Reader
from tests.support.accounting import callback
from tests.support.event_source import Cut, Event, EventSource, Stream, events_path, until_cut
from tests.support.processes import Cluster, Pod, get, post, wait_for
from tests.support.talk import open_socket

LIST = "orchestrator:acme:callbacks"
SECRET = "a-secret-of-at-least-thirty-two-bytes"
SLOWNESS_S = 5.0  # that a busy machine may add


def push(aes: redis.Redis, session_id: str, first: int, count: int, size: int = 300) -> list[str]:
    """Push callbacks ``first``…; returns their task ids."""
    tasks = [f"{session_id}.{n}" for n in range(first, first + count)]
    aes.lpush(LIST, *[callback("acme", session_id, task, size) for task in tasks])
    return tasks


def open_events(pod: Pod, session_id: str, last: str = "", **query: str) -> Stream:
    """Open a stream; use it as a context manager."""
    headers = {"Last-Event-ID": last} if last else {}
    return Stream(pod.port, events_path(session_id, **query), headers)


def tasks_of(events: list[Event]) -> list[str]:
    return [event.message["task_id"] for event in events]


def connections(pod: Pod) -> int:
    """Of the whole cluster."""
    status, stats = get(f"{pod.url}/ws/stats")
    return stats["connections"] if status == 200 else -1


# What is told.


def test_the_log_in_order_with_ids(cluster: Cluster, aes: redis.Redis) -> None:
    """What was missed and what comes live, each with its cursor; the next stream begins behind it."""
    before = push(aes, "order", 0, 20)
    wait_for(lambda: aes.llen(LIST) == 0, "the list is empty")
    with open_events(cluster.pods[0], "order") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-cache"
        assert "connection" not in stream.headers
        [ack] = stream.messages(1)
        assert (ack["type"], ack["data"]["resume"]["status"]) == ("connection_ack", "replayed")
        assert stream.last_event_id == ack["data"]["cursor"]
        assert stream.retry_ms is not None
        assert 500 <= stream.retry_ms <= 1500
        events = stream.logged(20)
        after = push(aes, "order", 20, 20)
        events += stream.logged(20)
    assert tasks_of(events) == before + after
    for number, event in enumerate(events, 1):
        place = event.message["metadata"]
        assert (event.event_id, event.name) == (f"{place['epoch']}:{number}", None)
    with open_events(cluster.pods[1], "order") as stream:
        assert stream.messages(1)[0]["data"]["resume"]["status"] == "fresh"


def test_the_same_as_a_socket(cluster: Cluster, aes: redis.Redis) -> None:
    """One session, a socket and a stream: the very same messages, byte by byte."""
    with (
        open_socket(cluster.pods[0], "same", stream="1") as client,
        open_events(cluster.pods[0], "same", stream="1") as stream,
    ):
        first = json.loads(client.recv(10))
        [second] = stream.messages(1)
        assert first.keys() == second.keys()
        assert first["data"].keys() == second["data"].keys()
        agent = Agent(aes, "same")
        for word in WORDS:
            agent.say(word)
        agent.finish()
        told: list[str] = []
        while not told or json.loads(told[-1])["type"] != "agent_response":
            told.append(str(client.recv(10)))
        streamed: list[str] = []
        while not streamed or json.loads(streamed[-1])["type"] != "agent_response":
            event = stream.receive()
            assert event is not None
            streamed.append(event.data)
    assert {json.loads(one)["type"] for one in told} >= {"agent_chunk", "agent_response"}
    assert [json.loads(one)["data"] for one in told] == [json.loads(one)["data"] for one in streamed]
    assert told[-1] == streamed[-1]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_framing(cluster: Cluster, aes: redis.Redis, version: str) -> None:
    """Chunks where the protocol has them, else up to the end of the connection."""
    name = f"framing-{version}"
    with Stream(cluster.pods[0].port, events_path(name), version=version) as stream:
        stream.messages(1)
        assert ("transfer-encoding" in stream.headers) == (version == "1.1")
        tasks = push(aes, name, 0, 3)
        assert tasks_of(stream.logged(3)) == tasks


def test_an_answer_is_streamed(cluster: Cluster, aes: redis.Redis) -> None:
    """Who comes in the middle gets what was said so far in one piece, and then what follows."""
    agent, reader = Agent(aes, "middle"), Reader()
    for word in WORDS:
        agent.say(word)
    wait_for(lambda: bool(aes.keys(f"*{agent.task_id}:text")), "something was said")
    with (
        open_events(cluster.pods[0], "middle", stream="1") as stream,
        open_events(cluster.pods[1], "middle") as plain,
    ):
        while reader.text != agent.said:
            reader.take(stream.messages(1)[0])
        assert (reader.pieces, reader.snapshots) == (1, 1)
        agent.say("and on")
        while reader.text != agent.said:
            reader.take(stream.messages(1)[0])
        agent.finish()
        [end] = stream.logged(1)
        assert end.message["data"]["response"] == agent.said["text"]
        assert [message["type"] for message in plain.messages(2)] == ["connection_ack", "agent_response"]


# Coming back.


def test_resume_on_the_other_pod(own_cluster: Cluster) -> None:
    """A pod is killed in mid-stream: with the last id the other one goes on, nothing lost or doubled."""
    first, second = own_cluster.pods
    with redis.Redis(port=own_cluster.redis_port) as aes:
        tasks = push(aes, "s", 0, 5)
        with open_events(first, "s") as stream:
            events = stream.logged(5)
            first.kill()
            with pytest.raises(Cut):
                stream.receive()
            tasks += push(aes, "s", 5, 5)
            with open_events(second, "s", stream.last_event_id) as again:
                [ack] = again.messages(1)
                assert ack["data"]["resume"]["status"] == "replayed"
                events += again.logged(5)
                tasks += push(aes, "s", 10, 2)
                events += again.logged(2)
    assert tasks_of(events) == tasks


def test_reset(cluster: Cluster, aes: redis.Redis) -> None:
    """A position that the log does not reach back to is answered so, and what is left follows."""
    push(aes, "reset", 0, 3)
    with open_events(cluster.pods[0], "reset", "e0000000:7") as stream:
        [ack] = stream.messages(1)
        assert (ack["data"]["resume"]["status"], ack["data"]["resume"]["oldest"]) == ("reset", 1)
        assert stream.last_event_id == ack["data"]["cursor"]
        assert len(stream.logged(3)) == 3


def test_like_a_browser(cluster: Cluster, aes: redis.Redis) -> None:
    """The address stays that of the beginning, cursor and all; the header says what is there now."""
    push(aes, "browser", 0, 3)
    with open_events(cluster.pods[0], "browser") as stream:
        cursor = stream.logged(1)[0].event_id
    assert cursor is not None
    with open_events(cluster.pods[0], "browser", cursor=cursor) as stream:
        events = stream.logged(2)
        last = events[-1].event_id or ""
    tasks = push(aes, "browser", 3, 2)
    with open_events(cluster.pods[1], "browser", last, cursor=cursor) as stream:
        assert tasks_of(stream.logged(2)) == tasks


# Refusals.


@pytest.mark.parametrize(
    ("query", "headers", "problem"),
    [
        ({"tenant_id": None}, {}, (400, "missing_id")),
        ({"cursor": "what"}, {}, (400, "invalid_cursor")),
        ({}, {"Last-Event-ID": "what"}, (400, "invalid_cursor")),
        ({"cursor": "a:1", "last_event_id": "a:2"}, {}, (400, "bad_request")),
        ({}, {"X-Tenant-ID": "other"}, (400, "bad_request")),
        ({"format": "morse"}, {}, (400, "bad_request")),
        ({}, {"Origin": "http://evil.example"}, (403, "origin_not_allowed")),
    ],
)
def test_refusals(
    cluster: Cluster, query: dict[str, str], headers: dict[str, str], problem: tuple[int, str]
) -> None:
    """What is wrong with a request is told as for any other."""
    with Stream(cluster.pods[0].port, events_path("s", **query), headers) as stream:
        assert stream.problem == problem


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE"])
def test_methods(cluster: Cluster, method: str) -> None:
    """It is read, and nothing else."""
    with Stream(cluster.pods[0].port, events_path("s"), method=method) as stream:
        assert stream.status == 405
        assert "GET" in stream.headers["allow"]


def test_nothing_may_stand_behind_it(cluster: Cluster) -> None:
    """A request that is sent right behind would never be answered; it is said before."""
    port = cluster.pods[0].port
    head = "HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with Stream(port, f"/livez {head}GET {events_path('s')} {head}GET /livez") as stream:
        assert stream.status == 200  # of what stands before it
        told = b"nothing may be asked behind an event stream"
        while told not in stream.rest:
            assert stream.fill(), stream.rest


def test_pages_of_other_origins(tmp_path: Path) -> None:
    """Those that are listed may read it, as anything else."""
    origin = {"Origin": "https://app.example.com"}
    path = events_path("s", tenant_id=None, token=token())
    with Cluster(
        tmp_path, pods=1, routers=1, AUTH="jwt", JWT_SECRET=SECRET, ALLOWED_ORIGINS="https://app.example.com"
    ) as cluster:
        with Stream(cluster.pods[0].port, path, origin) as stream:
            assert stream.headers["access-control-allow-origin"] == "https://app.example.com"
        with Stream(cluster.pods[0].port, events_path("s"), origin) as stream:
            assert stream.problem == (401, "token_missing")
            assert stream.headers["access-control-allow-origin"] == "https://app.example.com"


# While it is open.


def test_heartbeats(tmp_path: Path) -> None:
    """A comment in every heartbeat; the stream of a client that only reads stays."""
    with Cluster(tmp_path, pods=1, HEARTBEAT_S="0.2") as cluster, open_events(cluster.pods[0], "s") as stream:
        stream.messages(1)
        with pytest.raises(TimeoutError):
            stream.receive(2)
        assert 6 <= stream.comments <= 11
        assert connections(cluster.pods[0]) == 1
    print(f"\n{stream.comments} comments in 2 s")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods that want tokens."""
    with Cluster(
        tmp_path_factory.mktemp("guarded"), AUTH="jwt", JWT_SECRET=SECRET, AUTH_GRACE_S="1", JWT_LEEWAY_S="0"
    ) as running:
        yield running


def token(*scopes: str, ttl_s: int = 600, user: str | None = None) -> str:
    settings = Settings(jwt_secret=SECRET)
    return issue_token(
        settings,
        time.time(),
        tenant_id="acme",
        tier="free",
        ttl_s=ttl_s,
        scopes=scopes,
        user_id=user,
    )


def test_tokens(guarded: Cluster) -> None:
    """In the header or in the query; what is wrong is a plain refusal."""
    pod, path = guarded.pods[0], events_path("tokens", tenant_id=None)
    with Stream(pod.port, path, {"Authorization": f"Bearer {token()}"}) as stream:
        assert stream.messages(1)[0]["tenant_id"] == "acme"
    with Stream(pod.port, f"{path}?token={token()}") as stream:
        assert stream.messages(1)[0]["tenant_id"] == "acme"
    for given, problem in (
        ({}, (401, "token_missing")),
        ({"Authorization": "Bearer a.b.c"}, (401, "token_invalid")),
        ({"Authorization": f"Bearer {token('chat')}"}, (403, "scope_missing")),
    ):
        with Stream(pod.port, path, given) as stream:
            assert stream.problem == problem
    with Stream(pod.port, f"{path}?token={token()}", {"Authorization": f"Bearer {token()}"}) as stream:
        assert stream.problem == (400, "bad_request")
    assert "token=" not in pod.output


def test_another_users_session(guarded: Cluster) -> None:
    """A session belongs to who used it first."""
    path = events_path("owned", tenant_id=None)
    with Stream(guarded.pods[0].port, path, {"Authorization": f"Bearer {token(user='ann')}"}) as stream:
        stream.messages(1)
    with Stream(guarded.pods[1].port, path, {"Authorization": f"Bearer {token(user='bob')}"}) as stream:
        assert stream.problem == (403, "session_taken")


def test_a_token_that_expires(guarded: Cluster) -> None:
    """It is told, and the stream ends after the grace; who comes back is refused, and stays away."""
    path = events_path("expires", tenant_id=None, token=token(ttl_s=2))
    source = EventSource([pod.port for pod in guarded.pods], path)
    began = time.monotonic()
    messages = [event.message for event in source.events()]
    took = time.monotonic() - began

    assert [message["type"] for message in messages] == ["connection_ack", "error", "error"]
    assert {message["data"].get("error_code") for message in messages[1:]} == {"token_expired"}
    assert "connect again" in messages[1]["data"]["error"]
    assert source.refused == (401, "token_expired")
    assert 2 <= took <= 4 + SLOWNESS_S


def test_a_token_that_is_revoked(guarded: Cluster) -> None:
    """On every pod, at once."""
    with ExitStack() as stack:
        streams = []
        for pod in guarded.pods:
            headers = {"Authorization": f"Bearer {token(user='mallory')}"}
            path = events_path(f"revoked-{pod.port}", tenant_id=None)
            streams.append(stack.enter_context(Stream(pod.port, path, headers)))
            streams[-1].messages(1)
        admin = {"Authorization": f"Bearer {token('admin')}"}
        body = {"tenant_id": "acme", "user_id": "mallory"}
        began = time.monotonic()
        assert post(f"{guarded.pods[0].url}/api/admin/revocations", body, headers=admin)[0] in (200, 201, 204)
        for stream in streams:
            [error] = stream.messages(1)
            assert (error["type"], error["data"]["error_code"]) == ("error", "token_revoked")
            assert stream.receive() is None
        took = time.monotonic() - began
    assert took < 1 + SLOWNESS_S
    print(f"\ntwo streams on two pods ended {took * 1000:.0f} ms after the revocation")


def test_closed_by_an_administrator(guarded: Cluster) -> None:
    """For good: told so, and asked not to come back; or to come back."""
    admin = {"Authorization": f"Bearer {token('admin')}"}
    for reconnect in (False, True):
        name = f"closed-{reconnect}"
        path = events_path(name, tenant_id=None, token=token())
        with Stream(guarded.pods[0].port, path) as stream:
            stream.messages(1)
            body = {"tenant_id": "acme", "session_id": name, "reconnect": reconnect, "reason": "why not"}
            assert post(f"{guarded.pods[1].url}/api/admin/connections/close", body, headers=admin)[0] == 202
            [last] = stream.messages(1)
            assert stream.receive() is None
            if reconnect:
                assert (last["type"], last["data"]["reason"]) == ("reconnect", "why not")
                assert stream.retry_ms == last["data"]["after_ms"]
            else:
                assert (last["type"], last["data"]["error_code"]) == ("error", "closed_by_admin")
                assert stream.retry_ms == 86_400_000


def test_limits(tmp_path: Path) -> None:
    """A stream counts as a socket does, where it is held and everywhere, and no more once it has gone."""
    with Cluster(tmp_path, CONNECTIONS_PER_SESSION="2", CONNECTIONS_MAX="3") as cluster, ExitStack() as stack:
        first, second = cluster.pods
        client = stack.enter_context(open_socket(first, "s"))
        client.recv(10)
        stream = stack.enter_context(open_events(second, "s"))
        stream.messages(1)
        with open_events(first, "s") as refused:
            assert refused.problem == (429, "too_many_connections")
            assert int(refused.headers["retry-after"]) > 0
        others = [stack.enter_context(open_events(first, f"other-{n}")) for n in range(2)]
        for other in others:
            other.messages(1)
        with open_events(first, "one-more") as refused:
            assert refused.problem == (503, "pod_full")
        wait_for(lambda: connections(first) == 4, "all are counted")
        stream.close()

        def room() -> bool:
            with open_events(second, "s") as again:
                return again.status == 200

        wait_for(room, "there is room again")


def test_replaced(tmp_path: Path) -> None:
    """With one connection to a session the older one is told, on whichever pod, and stays away."""
    with (
        Cluster(tmp_path, SESSION_POLICY="replace") as cluster,
        open_events(cluster.pods[0], "s") as older,
    ):
        older.messages(1)
        with open_socket(cluster.pods[1], "s") as newer:
            newer.recv(10)
            [error] = older.messages(1)
            assert (error["type"], error["data"]["error_code"]) == ("error", "replaced")
            assert older.receive() is None
            assert older.retry_ms == 86_400_000


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    """What it is not sent stays in the log: the pod holds a buffer for it, and drops it after a while."""
    with (
        Cluster(tmp_path, pods=1, SLOW_CONSUMER_TIMEOUT_S="3") as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
    ):
        pod = cluster.pods[0]
        with (
            Stream(pod.port, events_path("s"), receive_buffer=4096) as slow,
            open_events(pod, "s") as quick,
        ):
            slow.messages(1)
            quick.messages(1)
            before = pod.rss_kib()
            size, count = 20_000, 600
            for start in range(0, count, 50):
                push(aes, "s", start, 50, size)
                assert len(quick.logged(50)) == 50
            grown = pod.rss_kib() - before
            wait_for(lambda: connections(pod) == 1, "the slow one is gone", 3 + SLOWNESS_S)
            got = [event for event in until_cut(slow) if "seq" in event.message["metadata"]]
        assert 0 < len(got) < count
        seqs = [event.message["metadata"]["seq"] for event in got]
        assert seqs == list(range(1, len(seqs) + 1))
    print(f"\n{size * count // 1024} KiB to a client that does not read: the pod grew by {grown} KiB")
    assert grown < 10 * 1024


def test_a_client_that_reads_late(tmp_path: Path) -> None:
    """One that reads again in time gets all of it, from the log."""
    with (
        Cluster(tmp_path, pods=1, SLOW_CONSUMER_TIMEOUT_S="60") as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
        Stream(cluster.pods[0].port, events_path("s"), receive_buffer=4096) as stream,
    ):
        stream.messages(1)
        for start in range(0, 300, 50):
            push(aes, "s", start, 50, 10_000)
        wait_for(lambda: aes.llen(LIST) == 0, "the list is empty")
        events = stream.logged(300, 30)
    assert tasks_of(events) == [f"s.{n}" for n in range(300)]


# Leaving.


def test_a_drain_loses_nothing(tmp_path: Path) -> None:
    """50 streams while their pod stops under traffic: sent away one by one, and each gets all of its own."""
    count, each, budget_s = 50, 20, 3.0
    with (
        Cluster(tmp_path, DRAIN_TIMEOUT_S=str(budget_s), RECONNECT_JITTER_S="0.3") as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
    ):
        first, second = cluster.pods
        opened = threading.Barrier(count + 1)

        def read(number: int) -> tuple[list[str], float, list[str]]:
            """The tasks it was told of, when it was sent away, and why."""
            tasks: list[str] = []
            left_at, reasons, greeted = 0.0, list[str](), False
            ports = [first.port, second.port, second.port, second.port]
            for event in EventSource(ports, events_path(f"d{number}")).events():
                message = event.message
                if message["type"] == "connection_ack" and not greeted:
                    greeted = True
                    opened.wait(30)
                elif message["type"] == "reconnect":
                    left_at = time.monotonic()
                    reasons.append(message["data"]["reason"])
                elif "seq" in message["metadata"]:
                    tasks.append(message["task_id"])
                    if len(tasks) == each:
                        break
            return tasks, left_at, reasons

        with ThreadPoolExecutor(count) as pool:
            reading = [pool.submit(read, number) for number in range(count)]
            opened.wait(30)
            began = time.monotonic()
            for number in range(each):
                if number == 3:
                    first.signal(signal.SIGTERM)
                aes.lpush(LIST, *[callback("acme", f"d{n}", f"d{n}.{number}") for n in range(count)])
                time.sleep((budget_s + 0.5) / each)
            told = [future.result(30) for future in reading]
        assert first.popen is not None
        assert first.popen.wait(SLOWNESS_S) == 0
        assert not any(json.loads(line)["level"] == "error" for line in first.output.splitlines())

    wrong = [n for n, (tasks, _, _) in enumerate(told) if tasks != [f"d{n}.{k}" for k in range(each)]]
    assert wrong == []
    assert {reason for _, _, reasons in told for reason in reasons} == {"the pod restarts"}
    left = sorted(at - began for _, at, _ in told)
    assert left[-1] - left[0] > 0.5 * budget_s
    print(
        f"\n{count} streams sent away from {left[0]:.1f} to {left[-1]:.1f} s; {count * each} messages, lost 0"
    )


def test_nothing_twice_for_a_client_without_an_id(tmp_path: Path) -> None:
    """What a stream was sent is noted before it is ended, so the next pod does not send it again."""
    with (
        Cluster(tmp_path, MARK_SENT_INTERVAL_S="10", RECONNECT_JITTER_S="0") as cluster,
        redis.Redis(port=cluster.redis_port) as aes,
    ):
        first, second = cluster.pods
        push(aes, "s", 0, 5)
        with open_events(first, "s") as stream:
            stream.logged(5)
            first.signal(signal.SIGTERM)
            assert stream.messages(1)[0]["type"] == "reconnect"
            assert stream.receive() is None
            with open_events(second, "s") as again:
                assert again.messages(1)[0]["data"]["resume"]["status"] == "fresh"


def test_old_streams_are_asked_to_come_back(tmp_path: Path) -> None:
    """At the greatest age, as sockets are."""
    with (
        Cluster(tmp_path, pods=1, CONNECTION_MAX_AGE_S="1", HEARTBEAT_S="0.2") as cluster,
        open_events(cluster.pods[0], "s") as stream,
    ):
        _ack, last = stream.messages(2)
        assert last["data"]["reason"] == "the connection has reached its greatest age"
        assert stream.receive() is None


def test_while_a_pod_drains(tmp_path: Path) -> None:
    """New streams are refused, with a time to come again."""
    with Cluster(tmp_path, pods=1, DRAIN_READINESS_S="600") as cluster:
        pod = cluster.pods[0]
        pod.signal(signal.SIGTERM)
        wait_for(lambda: get(f"{pod.url}/readyz")[0] == 503, "draining")
        with open_events(pod, "s") as stream:
            assert stream.problem == (503, "draining")
            assert stream.headers["retry-after"] == "1"


def test_clients_that_vanish(tmp_path: Path) -> None:
    """Whoever hangs up is counted out, at whatever moment; nothing stays."""
    with Cluster(tmp_path, pods=1, HEARTBEAT_S="0.3", HANDSHAKES_PER_ADDRESS="0") as cluster:
        pod = cluster.pods[0]

        async def hang_up(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
            writer.write(f"GET {events_path('s')} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            await asyncio.sleep(0.0005 * (number % 20))
            if number % 3 == 0:
                await reader.read(1000)
            writer.transport.abort()

        async def all_of_them() -> None:
            for start in range(0, 300, 50):
                await asyncio.gather(*[hang_up(number) for number in range(start, start + 50)])

        asyncio.run(all_of_them())
        wait_for(lambda: connections(pod) == 0, "all are gone", 5)
        assert '"level": "error"' not in pod.output
        assert "Traceback" not in pod.output
