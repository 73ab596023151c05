"""The HTTP side of a pod: what it answers, and that everything wrong is a problem document."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from backplane.errors import QueueFull, RedisUnavailable
from backplane.log import _Libraries
from backplane.rate_limiter import Charged, Standing
from gateway.tokens import issue_token
from tests.unit.gateway.web import (
    BODY,
    HEADERS,
    LIMIT,
    SUMMARY,
    StubPod,
    check_problem,
    client_of,
    send,
    with_tokens,
)

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.fixture
def pod() -> StubPod:
    return StubPod()


@pytest.fixture
async def client(pod: StubPod) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pod) as client:
        yield client


# Sending.


async def test_send(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A message is queued for the agents, and its sender is told what the contract names."""
    began = time.time()
    response = await send(client)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    [(queue_name, raw)] = pod.queue.pushed
    action = json.loads(raw)
    assert queue_name == "nooble4:dev:agent_execution_service:actions:free"
    assert {name: answer[name] for name in ("success", "queue_name", "estimated_time", "duplicate")} == {
        "success": True,
        "queue_name": queue_name,
        "estimated_time": 30,
        "duplicate": False,
    }
    assert answer["task_id"] == action["task_id"]
    assert answer["deadline_at"] == action["deadline_at"]
    assert answer["cursor"] == "e1:0"
    assert isinstance(answer["message"], str)
    assert action["message"] == "hello"
    assert action["callback_queue"] == "orchestrator:acme:callbacks"
    assert action["metadata"]["headers"] == {"X-Request-Source": "web"}
    assert action["queue_metadata"]["enqueued_at"] >= time.strftime("%Y-%m-%dT%H:%M", time.gmtime(began))
    assert pod.sender.accepted == 1


async def test_cursor_of_a_send_is_the_position_before_it(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Whoever reads from the answer's cursor on misses nothing of the task, and is shown nothing old."""
    session = pod.keys.session("orchestrator:acme:callbacks", "s-1")
    pod.log.append(4, session)
    answer = (await send(client)).json()

    assert answer["cursor"] == "e1:4"


async def test_each_send_has_its_own_ids(pod: StubPod, client: httpx.AsyncClient) -> None:
    """No two tasks share an id."""
    for _ in range(3):
        await send(client)
    actions = [json.loads(raw) for _name, raw in pod.queue.pushed]

    assert len({action[name] for action in actions for name in ("task_id", "action_id")}) == 6


async def test_headers_of_a_send(pod: StubPod, client: httpx.AsyncClient) -> None:
    """What the contract's headers say reaches the action where the AES looks for it."""
    response = await send(
        client,
        X_User_ID="ann@example.org",
        X_Context_Type="collection",
        X_Collection_ID="docs",
        X_Conversation_ID="c-1",
        X_Request_Source="app",
        X_Client_Version="v" * 256,
        X_Task_Timeout="7",
        traceparent=TRACE,
        X_Other="not passed on",
    )
    assert response.status_code == 200
    [(_name, raw)] = pod.queue.pushed
    action = json.loads(raw)

    assert action["execution_context"]["context_id"] == "collection-docs"
    assert action["timeout"] == 7
    assert action["metadata"]["user_id"] == "ann@example.org"
    assert action["metadata"]["conversation_id"] == "c-1"
    assert action["metadata"]["traceparent"][:-2] == TRACE[:-2]  # what its flags say is ours
    assert action["metadata"]["headers"] == {
        "X-Request-Source": "app",
        "X-Client-Version": "v" * 256,
        "X-Conversation-ID": "c-1",
        "X-User-ID": "ann@example.org",
    }


@pytest.mark.parametrize(
    ("header", "field", "seconds"), [("5", None, 5), (None, 6, 6), ("5", 6, 5), ("9999999", None, 30)]
)
async def test_timeout_of_a_send(
    pod: StubPod, client: httpx.AsyncClient, header: str | None, field: int | None, seconds: int
) -> None:
    """A timeout may stand in the header or the body; the header wins, and the tier bounds both."""
    body = json.dumps({"message": "hello"} if field is None else {"message": "hello", "timeout": field})
    await send(client, body.encode(), X_Task_Timeout=header)
    [(_name, raw)] = pod.queue.pushed

    assert json.loads(raw)["timeout"] == seconds


@pytest.mark.parametrize("trace", ["", "hello", TRACE.upper(), TRACE + "-more", TRACE[:-1], "é"])
async def test_a_bad_traceparent_is_ignored(pod: StubPod, client: httpx.AsyncClient, trace: str) -> None:
    """A trace that is none must not keep a message from its agent (W3C Trace Context, 3.2.2)."""
    response = await send(client, traceparent=trace.encode())

    own = response.json()["task_id"].replace("-", "")
    assert response.status_code == 200
    assert response.json()["trace_id"] == own
    assert json.loads(pod.queue.pushed[0][1])["metadata"]["traceparent"] == f"00-{own}-{own[16:]}-00"


@pytest.mark.parametrize(
    ("changed", "status", "code", "says"),
    [
        ({"X_Tenant_ID": None}, 400, "missing_id", "X-Tenant-ID"),
        ({"X_Tenant_ID": ""}, 400, "invalid_id", "X-Tenant-ID"),
        ({"X_Tenant_ID": "a:b"}, 400, "invalid_id", "X-Tenant-ID"),
        ({"X_Tenant_ID": "é".encode()}, 400, "invalid_id", "X-Tenant-ID"),
        ({"X_Tenant_Tier": None}, 400, "unknown_tier", "X-Tenant-Tier"),
        ({"X_Tenant_Tier": "gold"}, 400, "unknown_tier", "X-Tenant-Tier"),
        ({"X_Session_ID": None}, 400, "missing_id", "X-Session-ID"),
        ({"X_Session_ID": "a/b"}, 400, "invalid_id", "X-Session-ID"),
        ({"X_Session_ID": "x" * 129}, 400, "invalid_id", "X-Session-ID"),
        ({"X_Agent_ID": None}, 400, "missing_id", "X-Agent-ID"),
        ({"X_Agent_ID": "{a}"}, 400, "invalid_id", "X-Agent-ID"),
        ({"X_User_ID": "a b"}, 400, "invalid_id", "X-User-ID"),
        ({"X_Conversation_ID": "a b"}, 400, "invalid_id", "X-Conversation-ID"),
        ({"X_Context_Type": "dance"}, 400, "invalid_field", "X-Context-Type"),
        ({"X_Context_Type": "collection"}, 400, "missing_id", "X-Collection-ID"),
        ({"X_Collection_ID": "*"}, 400, "invalid_id", "X-Collection-ID"),
        ({"X_Client_Version": "v" * 257}, 400, "invalid_field", "X-Client-Version"),
        ({"X_Request_Source": "v" * 257}, 400, "invalid_field", "X-Request-Source"),
        ({"X_Task_Timeout": "0"}, 400, "invalid_field", "X-Task-Timeout"),
        ({"X_Task_Timeout": "-5"}, 400, "invalid_field", "X-Task-Timeout"),
        ({"X_Task_Timeout": "1.5"}, 400, "invalid_field", "X-Task-Timeout"),
        ({"X_Task_Timeout": "²".encode()}, 400, "invalid_field", "X-Task-Timeout"),
        ({"X_Task_Timeout": "9" * 5_000}, 400, "invalid_field", "X-Task-Timeout"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_headers(
    pod: StubPod, client: httpx.AsyncClient, changed: dict[str, Any], status: int, code: str, says: str
) -> None:
    """A header that is missing or wrong is named, and nothing is queued."""
    response = await send(client, **changed)

    assert says in check_problem(response, status, code)["detail"]
    assert pod.queue.pushed == []
    assert pod.log.calls == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "not_json"),
        (b"hello", 400, "not_json"),
        (b"\xff\xfe", 400, "not_json"),
        (b"[]", 422, "not_an_object"),
        (b"{}", 422, "invalid_field"),
        (b'{"message":""}', 422, "invalid_field"),
        (b'{"message":5}', 422, "invalid_field"),
        (b'{"message":"x","timeout":0}', 422, "invalid_field"),
        (b'{"message":"x","max_iterations":"many"}', 422, "invalid_field"),
    ],
)
async def test_bad_bodies(
    pod: StubPod, client: httpx.AsyncClient, body: bytes, status: int, code: str
) -> None:
    """A body that is wrong says what is wrong with it, and nothing is queued."""
    check_problem(await send(client, body), status, code)

    assert pod.queue.pushed == []


async def test_body_at_the_limit(client: httpx.AsyncClient) -> None:
    """A body may have exactly as many bytes as the setting says."""
    body = BODY + b" " * (LIMIT - len(BODY))

    assert (await send(client, body)).status_code == 200
    check_problem(await send(client, body + b" "), 413, "message_too_large")


async def test_endless_body() -> None:
    """A body without an announced length is not read past the limit."""
    pod = StubPod()
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(1_000):
            given += 500
            yield b"x" * 500

    async with client_of(pod) as client:
        response = await client.post("/api/chat/send", content=endless(), headers=HEADERS)

    check_problem(response, 413, "message_too_large")
    assert given <= LIMIT + 1_000
    assert pod.queue.pushed == []


async def test_full_queue(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Agents that cannot keep up are told as such, with a time to come back."""
    pod.queue.refusal = QueueFull("full")
    response = await send(client)

    check_problem(response, 503, "queue_full")
    assert response.headers["retry-after"] == "5"
    assert pod.sender.accepted == 0


@pytest.mark.parametrize("where", ["log", "queue"])
async def test_send_while_redis_is_away(pod: StubPod, client: httpx.AsyncClient, where: str) -> None:
    """An outage is a 503 with Retry-After, wherever it is met, and shows nothing of Redis."""
    away = RedisUnavailable("connection to redis.test:6379 lost: password wrong")
    if where == "log":
        pod.log.refusal = away
    else:
        pod.queue.refusal = away
    response = await send(client)

    check_problem(response, 503, "redis_unavailable")
    assert response.headers["retry-after"] == "1"
    assert "redis.test" not in response.text
    assert pod.sender.accepted == 0
    assert pod.queue.pushed == []


# Tokens.


async def test_send_with_a_token() -> None:
    """With AUTH=jwt a token is enough, and what it says stands."""
    pod = StubPod(auth="jwt", jwt_secret="a-secret-of-at-least-thirty-two-bytes")
    token = issue_token(
        pod.settings, time.time(), tenant_id="acme", tier="free", sessions=["s-1"], agents=["sales"]
    )
    bearer = f"Bearer {token}"
    async with client_of(pod) as client:
        bare: dict[str, Any] = {"X_Tenant_ID": None, "X_Tenant_Tier": None, "X_Session_ID": None}
        assert (await send(client, **bare, Authorization=bearer)).status_code == 200
        assert (await send(client, Authorization=f"bearer   {token} ")).status_code == 200
        missing = await send(client)
        check_problem(missing, 401, "token_missing")
        assert missing.headers["www-authenticate"] == "Bearer"
        for wrong in ("Basic YTpi", "Bearer", "Bearer "):
            check_problem(await send(client, Authorization=wrong), 401, "token_missing")
        check_problem(await send(client, Authorization="Bearer x.y.z"), 401, "token_invalid")
        check_problem(await send(client, Authorization=bearer, X_Tenant_ID="evil"), 403, "forbidden")
        check_problem(await send(client, Authorization=bearer, X_Agent_ID="secret"), 403, "forbidden")

    assert len(pod.queue.pushed) == 2


GIVEN_ONCE = (
    *HEADERS,
    "X-User-ID",
    "Authorization",
    "X-Context-Type",
    "X-Collection-ID",
    "X-Conversation-ID",
    "X-Request-Source",
    "X-Client-Version",
    "X-Task-Timeout",
)


@pytest.mark.parametrize("name", GIVEN_ONCE)
async def test_headers_that_are_given_twice(pod: StubPod, client: httpx.AsyncClient, name: str) -> None:
    """A load balancer could take the first and we the second, so neither is taken, also if they agree."""
    usual = [(header, value) for header, value in HEADERS.items() if header != name]
    response = await client.post("/api/chat/send", content=BODY, headers=[*usual, (name, "5"), (name, "5")])

    assert name.lower() in check_problem(response, 400, "bad_request")["detail"].lower()
    assert pod.queue.pushed == []


# Limits and owners.


async def test_what_is_left_is_told(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A client that reads the headers never needs to be refused."""
    pod.limiter.answer = Charged(True, 0.0, (), (Standing("minute", 10, 60, 3, 42.0),))
    response = await send(client)

    assert response.headers["ratelimit-policy"] == '"minute";q=10;w=60'
    assert response.headers["ratelimit"] == '"minute";r=3;t=42'


async def test_over_the_limit(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A problem document with the limit's name, and when to come back."""
    pod.limiter.answer = Charged(False, 12.3, ("minute",), (Standing("minute", 10, 60, 0, 60.0),))
    response = await send(client)
    document = check_problem(response, 429, "rate_limited", limit="minute")

    assert "10 sends a minute" in document["detail"]
    assert response.headers["retry-after"] == "13"
    assert response.headers["ratelimit"] == '"minute";r=0;t=60'
    assert pod.queue.pushed == []
    assert pod.refused == {"rate_limited": 1}


async def test_a_session_of_another_user() -> None:
    """Within a tenant too, nobody sends into a session that is not his."""
    pod = with_tokens()
    bare: dict[str, Any] = {"X_Tenant_ID": None, "X_Tenant_Tier": None}
    async with client_of(pod) as client:
        for user, ok in (("ann", True), ("bob", False), ("ann", True)):
            asked: dict[str, Any] = {**bare, **pod.bearer(user_id=user)}
            response = await send(client, **asked)
            if ok:
                assert response.status_code == 200
            else:
                check_problem(response, 403, "session_taken")

    assert len(pod.queue.pushed) == 2


async def test_a_token_that_may_not_chat() -> None:
    """To listen is not to speak."""
    pod = with_tokens()
    token: dict[str, Any] = pod.bearer("listen", "admin", "stats")
    async with client_of(pod) as client:
        response = await send(client, X_Tenant_ID=None, X_Tenant_Tier=None, **token)

    check_problem(response, 403, "scope_missing")
    assert pod.log.calls == []


# Everything that is not there.


@pytest.mark.parametrize("path", ["/", "/api", "/ws", "/ws/s-1", "/livez/x", "/%00"])
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    """What is not there says so in the same form as every other error."""
    check_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/chat/send", "POST"),
        ("DELETE", "/api/chat/send", "POST"),
        ("POST", "/livez", "GET"),
        ("PUT", "/readyz", "GET"),
    ],
)
async def test_wrong_methods(client: httpx.AsyncClient, method: str, path: str, allowed: str) -> None:
    """A wrong method is told which one is right (RFC 9110, 15.5.6)."""
    response = await client.request(method, path)

    check_problem(response, 405, "method_not_allowed")
    assert allowed in response.headers["allow"]


async def test_a_mistake_of_ours(pod: StubPod, client: httpx.AsyncClient) -> None:
    """What nobody expected is a 500 for the client and a traceback in the log, not the reverse."""
    pod.queue.refusal = ZeroDivisionError("something secret")
    with capture_logs() as logs:
        response = await send(client)

    check_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert [(event["event"], event["route"]) for event in logs] == [("request_failed", "/api/chat/send")]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)


async def test_a_mistake_is_told_once(pod: StubPod, client: httpx.AsyncClient) -> None:
    """The server gets the exception, too, and says so to its own logger; another error only it tells."""
    pod.queue.refusal = ZeroDivisionError("something secret")
    with capture_logs() as logs:
        await send(client)
        [error] = [event["exc_info"] for event in logs]
        for passed_on in (error, ZeroDivisionError("another")):
            record = logging.LogRecord(
                "uvicorn.error", logging.ERROR, "", 0, "Exception in ASGI application\n", (), None
            )
            record.exc_info = (type(passed_on), passed_on, None)
            _Libraries().emit(record)
    assert [event["event"] for event in logs] == ["request_failed", "library_error"]


# Health.


class Untouchable:
    """Fails when anything is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was looked at")


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/livez", {"status": "ok"}), ("/health", {"status": "ok", "service": "agent_orchestrator"})],
)
async def test_liveness_never_looks_at_redis(path: str, answer: dict[str, str]) -> None:
    """A pod that is restarted because Redis is away only adds to the trouble."""
    pod = StubPod()
    blind = SimpleNamespace(
        settings=pod.settings,
        authenticator=pod.authenticator,
        sender=Untouchable(),
        health=Untouchable(),
        commands=Untouchable(),
        feed=Untouchable(),
        keys=Untouchable(),
        origins=pod.origins,
        refused=pod.refused,
        metrics=pod.metrics,
    )
    async with client_of(blind) as client:
        response = await client.get(path)

    assert (response.status_code, response.json()) == (200, answer)


async def test_ready(client: httpx.AsyncClient) -> None:
    """A pod through which messages get says so."""
    response = await client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_ready_but_impaired(pod: StubPod, client: httpx.AsyncClient) -> None:
    """One of several servers away: ready for the others' sessions, and the operator is told."""
    pod.impairment = "no connection to Redis at b:6379"
    response = await client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "impaired": "no connection to Redis at b:6379"}
    details = (await client.get("/health/detailed")).json()
    assert (details["status"], details["ready"]) == ("degraded", True)


async def test_not_ready(pod: StubPod, client: httpx.AsyncClient) -> None:
    """One through which they do not is taken out of the load balancer, and says why to the operator."""
    pod.problem = "draining"
    response = await client.get("/readyz")

    assert (response.status_code, response.json()) == (503, {"status": "not_ready", "reason": "draining"})


async def test_details(client: httpx.AsyncClient) -> None:
    """One page tells an operator how this pod, Redis and the routers are; it shows no password."""
    details = (await client.get("/health/detailed")).json()

    assert (details["status"], details["ready"], details["reason"]) == ("ok", True, None)
    assert details["redis"] == {
        "address": "redis.test:6379/0",
        "connected": True,
        "probe_round_trip_ms": 1.5,
    }
    assert details["routers"] == 1
    assert details["pod"] == {"pod_id": "pod-1", **SUMMARY}


async def test_details_without_a_router(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Callbacks that nobody moves are a reason to look, though this pod is ready."""
    pod.commands.replies = {"SMEMBERS": set()}
    details = (await client.get("/health/detailed")).json()

    assert (details["status"], details["ready"], details["routers"]) == ("degraded", True, 0)
    assert "router" in details["reason"]


async def test_details_with_a_router_in_trouble(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A router that does not do its work is as good a reason, in its own words; the others are not blamed."""
    pod.commands.replies = {
        "SMEMBERS": {b"r-1", b"r-2"},
        ("GET", pod.keys.member("routers", "r-1")): b'{"ready":true,"reason":null}',
        ("GET", pod.keys.member("routers", "r-2")): b'{"ready":false,"reason":"its probes do not come back"}',
    }
    details = (await client.get("/health/detailed")).json()

    assert (details["status"], details["ready"], details["routers"]) == ("degraded", True, 2)
    assert details["reason"] == "router r-2: its probes do not come back"


@pytest.mark.parametrize("which", ["commands", "feed"])
async def test_details_while_redis_is_away(pod: StubPod, client: httpx.AsyncClient, which: str) -> None:
    """The page that explains an outage is there during the outage."""
    getattr(pod, which).up = False
    pod.problem = "no connection to Redis"
    response = await client.get("/health/detailed")
    details = response.json()

    assert response.status_code == 200
    assert (details["status"], details["reason"]) == ("degraded", "no connection to Redis")
    assert (details["redis"]["connected"], details["routers"]) == (False, None)
    assert pod.commands.called == []


# Statistics.


async def test_socket_statistics(pod: StubPod, client: httpx.AsyncClient) -> None:
    """All pods are counted: the others as they said last, this one as it is."""
    pod.commands.replies = {
        "SMEMBERS": {b"pod-1", b"pod-2"},
        ("GET", pod.keys.member("pods", "pod-1")): b'{"connections":99}',
        ("GET", pod.keys.member("pods", "pod-2")): b'{"connections":4}',
    }
    answer = (await client.get("/ws/stats")).json()

    assert answer["connections"] == 7
    assert [(one["pod_id"], one["connections"]) for one in answer["pods"]] == [("pod-1", 3), ("pod-2", 4)]
    assert answer["answered_by"] == "pod-1"


async def test_socket_statistics_of_a_tenant(pod: StubPod, client: httpx.AsyncClient) -> None:
    """One tenant's connections, by pod."""
    pod.commands.replies = {"SMEMBERS": set(), "HGETALL": {b"pod-1": b"2", b"dead": b"9"}}
    answer = (await client.get("/ws/stats", params={"tenant_id": "acme"})).json()

    assert answer == {
        "tenant_id": "acme",
        "connections": 2,
        "pods": [{"pod_id": "pod-1", "connections": 2}],
        "answered_by": "pod-1",
    }
    check_problem(await client.get("/ws/stats", params={"tenant_id": "a:b"}), 400, "invalid_id")


async def test_chat_statistics(pod: StubPod, client: httpx.AsyncClient) -> None:
    """How much was sent and delivered, and what waits for agents, by tier."""
    pod.commands.replies = {"SMEMBERS": set()}
    await send(client)
    answer = (await client.get("/api/chat/stats")).json()

    assert (answer["sends_accepted"], answer["messages_delivered"], answer["pods"]) == (5, 7, 1)
    assert [(queue["tier"], queue["actions"]) for queue in answer["queues"]] == [
        ("free", 1),
        ("advance", 0),
        ("professional", 0),
        ("enterprise", 0),
    ]


@pytest.mark.parametrize("path", ["/ws/stats", "/api/chat/stats", "/ws/stats?tenant_id=acme"])
async def test_statistics_while_redis_is_away(pod: StubPod, client: httpx.AsyncClient, path: str) -> None:
    """What cannot be counted now is a 503 that says when, not a mistake of ours."""
    pod.commands.up = False
    response = await client.get(path)

    check_problem(response, 503, "redis_unavailable")
    assert response.headers["retry-after"] == "1"
