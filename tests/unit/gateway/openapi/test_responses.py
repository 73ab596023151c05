"""What the endpoints really answer is what the document says of that operation and status."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest

from backplane.errors import InputExpired, LimitReached, QueueFull, RedisUnavailable
from backplane.rate_limiter import Charged, Standing
from backplane.revocations import Revocation
from backplane.router.dispatch import dispatch
from backplane.task import Due
from gateway.errors import ClientError
from gateway.event_request import read_request
from gateway.identity import OPERATOR, SCOPES
from gateway.openapi.examples import TASK_ID
from tests.unit.gateway.openapi.judge import complaints, find, operations, with_jwt, without_tokens
from tests.unit.gateway.web import HEADERS, LIMIT, StubPod, client_of
from tests.unit.gateway.web import SECRET as JWT_SECRET

SEND = "/api/chat/send"
TASK = "/api/chat/tasks/{sent}"
MESSAGES = "/api/chat/sessions/s-1/messages"
EVENTS = "/api/chat/sessions/s-1/events"
CONNECTIONS = "/api/admin/connections"
REVOCATIONS = "/api/admin/revocations"
LIMITS = "/api/admin/tenants/acme/limits"
LOG_LEVEL = "/api/admin/log-level"
HELLO = {"message": "hello"}
AWAY = RedisUnavailable("away")
MINUTE = Standing("minute", 10, 60, 0, 60.0)
POD = {
    "address": "127.0.0.1:8080", "connections": 3, "sessions": 2, "ready": True, "opened": 4,
    "closed": {"1000": 1}, "delivered": 7, "gaps": 0, "events_told": 0, "streams_healed": 0,
    "sends_accepted": 5, "sends_repeated": 1, "tasks_cancelled": 0, "refused": {"not_json": 1},
}  # fmt: skip
ROUTER = {"lists": 2, "oldest_s": 0.1, "ready": True, "reason": None, "appended": 7, "lookout": True}
OWNED = {
    "connection_id": "c-1", "tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1", "user_id": None,
    "since": 1_769_860_800,
}  # fmt: skip


class World(StubPod):
    """A pod whose clients need tokens, with something of everything that can be asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            auth="jwt", jwt_secret=JWT_SECRET, access_check_url="http://access.test/", **settings
        )
        self.sender._access = SimpleNamespace(check=self._check)  # type: ignore[assignment]
        self.refused_agent: ClientError | None = None
        self.commands.replies = {
            ("SMEMBERS", self.keys.members("pods")): {b"pod-1"},
            ("SMEMBERS", self.keys.members("routers")): {b"router-1"},
            ("GET", self.keys.member("pods", "pod-1")): json.dumps(POD).encode(),
            ("GET", self.keys.member("routers", "router-1")): json.dumps(ROUTER).encode(),
            "HGETALL": {b"pod-1": b"2"},
            "HSCAN": [b"0", [b"c-1", json.dumps(OWNED).encode()]],
            "HMGET": [b"5", None, None, b"7", b"reject"],
        }
        self.events = SimpleNamespace(publish=self._tell, announce=self._tell, log=self._tell)
        self.event_streams = SimpleNamespace(open=self._refuse_events)
        self.asked: Due | None = None
        self.late = False
        self.tasks.take_input = self._take_input  # type: ignore[attr-defined]
        self.tasks.report = self._tell  # type: ignore[attr-defined]

    def summary(self) -> dict[str, Any]:
        return dict(POD)

    async def _check(self, *_who: Any) -> None:
        if self.refused_agent is not None:
            raise self.refused_agent

    async def _tell(self, *_what: Any) -> None:
        if self.commands.refusal is not None:
            raise self.commands.refusal

    async def _refuse_events(self, request: Any) -> Any:
        """As far as a request is judged without a connection."""
        asked = read_request(request)
        await self.authenticator.identify(asked.token, asked.stated)
        raise ClientError(404, "unknown_task", "there is no connection here")

    async def _take_input(self, *_what: Any) -> Due | None:
        if self.late:
            raise InputExpired
        return self.asked


class Case(NamedTuple):
    """A request, and what it is answered.

    Attributes:
        path: with ``{sent}`` for the id of a task that was sent before.
        says: an error code, or the status.
        body: JSON values, or bytes as they are.
        scopes: of the token; None for no token, text for one that is none.
        tenant: `OPERATOR` for an operator's.
        before: what the world is like.
    """

    method: str
    path: str
    says: str | int
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012  # never written to
    scopes: tuple[str, ...] | str | None = SCOPES
    tenant: str = "acme"
    before: Callable[[World], object] = lambda _world: None

    def __str__(self) -> str:
        body = "" if self.body is None else str(self.body)[:30]
        return f"{self.method} {self.path} {self.says} {body}"


def remember(world: World) -> None:
    """A log with a message of every kind that an agent's callbacks become."""
    base = {"task_id": "t-1", "session_id": "s-1", "tenant_id": "acme", "tenant_tier": "free"}
    callbacks: list[dict[str, Any]] = [
        {"status": "completed", "result": {"response": "hello", "more": [1]}, "tokens_used": {"total": 2}},
        {"status": "failed", "result": {"error": {"type": "Oops", "message": "it broke"}}},
        {"action_type": "execution.progress", "data": {"step": "looks", "progress": 0.5}},
        {
            "action_type": "execution.progress",
            "data": {"status": "input_required", "input": {"prompt": "really?", "expires_in": 60}},
        },
        {"action_type": "execution.event", "data": {"event": "deployed", "payload": 1}},
        {"task_id": None, "tenant_tier": "none such", "status": "completed", "result": {"response": "late"}},
    ]
    record = world.log.record(world.keys.session("orchestrator:acme:callbacks", "s-1"))
    for callback in callbacks:
        entry = dispatch(json.dumps({**base, **callback}).encode(), "acme", "2026-01-31T12:00:00.000Z")
        record.entries.append(entry.body)
        record.head += 1


def owned_by_ann(world: World) -> None:
    world.log.record(world.keys.session("orchestrator:acme:callbacks", "s-1")).owner = "ann"


def refuse(part: str, error: Exception) -> Callable[[World], object]:
    """Something that the endpoint needs raises."""
    return lambda world: setattr(getattr(world, part), "refusal", error)


def task_with(**fields: str) -> Callable[[World], object]:
    """The record of the task that was sent has these, too."""
    return lambda world: [record.update(fields) for record in world.tasks.records.values()]


def over(world: World) -> None:
    world.limiter.answer = Charged(False, 12.3, ("minute",), (MINUTE,))


def used_up(world: World) -> None:
    world.limiter.answer = Charged(True, 0.0, (), (MINUTE,))


def waits(world: World) -> None:
    world.asked = Due(TASK_ID, "input_required", "s-1", "free", "q", "", "", "agent-sales", "sales")


def is_late(world: World) -> None:
    world.late = True


def broken(world: World) -> None:
    world.queue.refusal = ZeroDivisionError("something")


def without_keys(world: World) -> None:
    async def grant(_token: str | None) -> Any:
        raise ClientError(503, "keys_unavailable", "later", retry_after_s=2)

    world.authenticator.grant = grant  # type: ignore[method-assign, assignment]


def revoked(world: World) -> None:
    world.authenticator._revoked = lambda _grant: True


def refuse_agent(status: int, code: str, after_s: float | None = None) -> Callable[[World], object]:
    return lambda world: setattr(
        world, "refused_agent", ClientError(status, code, "no", retry_after_s=after_s)
    )


ENDED = {
    "status": "completed", "attempt": "2", "first": "1", "last": "2", "epoch": "e1", "late": "1",
    "started": "1769860800000", "ended": "1769860801000",
    "usage": '{"tokens_used":{"total":2},"model_used":"m","processing_time":null}',
}  # fmt: skip
LATE = '{"timestamp":"2026-01-31T12:00:00.000Z","type":"agent_response","task_id":"t-1","session_id":"s-1",'
LATE += '"tenant_id":"acme","tenant_tier":null,"data":{},"metadata":{'

GOOD = [
    Case("POST", SEND, 200, HELLO),
    Case("POST", SEND, 200, {**HELLO, "busy_policy": "enqueue"}),
    Case("POST", SEND, 200, HELLO, before=used_up),
    Case("GET", TASK, 200),
    Case("GET", TASK, 200, before=task_with(**ENDED, late_answer=LATE)),
    Case("GET", TASK, 200, before=task_with(status="input_required", reason="why")),
    Case("GET", TASK, 200, before=task_with(status="held")),
    Case("POST", f"{TASK}/cancel", 200),
    Case("POST", f"{TASK}/cancel", 200, {"reason": "enough"}, before=task_with(status="failed")),
    Case("POST", "/api/chat/cancel", 200, {"client_message_id": "m-0"}),
    Case("POST", f"{TASK}/input", 200, {"input_id": "i-1", "value": [1]}, before=waits),
    Case("GET", MESSAGES, 200),
    Case("GET", MESSAGES, 200, before=remember),
    Case("GET", f"{MESSAGES}?cursor=x:9", 200, before=remember),
    Case("POST", "/api/broadcast", 200, {"to": {"tenant": True}, "payload": None}),
    Case("GET", "/health", 200, scopes=None),
    Case("GET", "/livez", 200, scopes=None),
    Case("GET", "/readyz", 200, scopes=None),
    Case("GET", "/readyz", 200, scopes=None, before=lambda world: setattr(world, "impairment", "one away")),
    Case("GET", "/readyz", 503, scopes=None, before=lambda world: setattr(world, "problem", "draining")),
    Case("GET", "/openapi.json", 200, scopes=None),
    Case("GET", "/health/detailed", 200),
    Case("GET", "/health/detailed", 200, before=lambda world: setattr(world.commands, "up", False)),
    Case("GET", "/ws/stats", 200),
    Case("GET", "/ws/stats", 200, tenant=OPERATOR),
    Case("GET", "/ws/stats?tenant_id=acme", 200, tenant=OPERATOR),
    Case("GET", "/api/chat/stats", 200, tenant=OPERATOR),
    Case("GET", "/metrics", 200),
    Case("GET", "/metrics", 200, headers={"Accept": "application/openmetrics-text;version=1.0.0"}),
    Case("GET", f"{CONNECTIONS}?limit=1", 200),
    Case("POST", f"{CONNECTIONS}/close", 202, {"user_id": "ann"}),
    Case("POST", REVOCATIONS, 201, {"user_id": "ann"}),
    Case("POST", REVOCATIONS, 201, {"tenant_id": OPERATOR, "token_id": "t-1"}, tenant=OPERATOR),
    Case("GET", REVOCATIONS, 200),
    Case("DELETE", f"{REVOCATIONS}?user_id=known", 200),
    Case("GET", LIMITS, 200),
    Case("GET", LOG_LEVEL, 200, tenant=OPERATOR),
    Case("PUT", LOG_LEVEL, 200, {"level": "info"}, tenant=OPERATOR),
    Case("PUT", LIMITS, 200, {"sends_per_day": 0, "busy_policy": "reject"}, tenant=OPERATOR),
]

BAD = [
    # Tokens.
    Case("POST", SEND, "token_missing", HELLO, scopes=None),
    Case("POST", SEND, "token_invalid", HELLO, scopes="a.b.c"),
    Case("POST", SEND, "token_expired", HELLO, scopes="expired"),
    Case("POST", SEND, "token_revoked", HELLO, before=revoked),
    Case("POST", SEND, "keys_unavailable", HELLO, before=without_keys),
    Case("POST", SEND, "scope_missing", HELLO, scopes=("listen",)),
    Case("GET", TASK, "scope_missing", scopes=("chat",)),
    Case("GET", "/metrics", "scope_missing", scopes=("chat",)),
    Case("GET", CONNECTIONS, "scope_missing", scopes=("chat",)),
    Case("POST", "/api/broadcast", "scope_missing", {"to": {"tenant": True}, "payload": 1}, scopes=("chat",)),
    # Who.
    Case("POST", SEND, "missing_id", HELLO, {"X-Context-Type": "collection"}),
    Case("POST", SEND, "invalid_id", HELLO, {"X-Agent-ID": "a b"}),
    Case("POST", SEND, "forbidden", HELLO, {"X-Tenant-Tier": "gold"}),
    Case("POST", SEND, "forbidden", HELLO, {"X-Tenant-ID": "evil"}),
    Case("POST", SEND, "forbidden", HELLO, tenant=OPERATOR),
    Case("POST", SEND, "session_taken", HELLO, before=owned_by_ann),
    Case("GET", MESSAGES, "session_taken", before=owned_by_ann),
    Case("GET", TASK, "session_taken", before=owned_by_ann),
    Case("POST", "/api/broadcast", "unknown_tier", {"to": {"tier": "gold"}, "payload": 1}),
    Case("GET", "/ws/stats?tenant_id=evil", "forbidden"),
    Case("GET", "/api/chat/stats", "forbidden"),
    Case("GET", f"{CONNECTIONS}?tenant_id=evil", "forbidden"),
    Case("PUT", LIMITS, "forbidden", {}),
    Case("GET", LOG_LEVEL, "forbidden"),
    Case("PUT", LOG_LEVEL, "forbidden", {"level": "info"}),
    # Bodies.
    Case("POST", SEND, "not_json", b"{"),
    Case("POST", SEND, "not_an_object", []),
    Case("POST", SEND, "invalid_field", {}),
    Case("POST", SEND, "message_too_large", b" " * (LIMIT + 1)),
    Case("POST", SEND, "unsupported_encoding", HELLO, {"Content-Encoding": "gzip"}),
    Case("POST", SEND, "bad_request", HELLO, {"X-Tenant-ID": "acme", "x-tenant-id": "acme"}),
    Case("POST", SEND, "invalid_field", HELLO, {"X-Task-Timeout": "soon"}),
    Case("POST", f"{TASK}/cancel", "invalid_field", {"reason": 5}),
    Case("POST", "/api/chat/cancel", "missing_id", {}),
    Case("POST", f"{TASK}/input", "invalid_id", {"input_id": "a b", "value": 1}),
    Case("POST", "/api/broadcast", "invalid_field", {"to": {}, "payload": 1}),
    Case("POST", f"{CONNECTIONS}/close", "not_json", b"{"),
    Case("POST", f"{CONNECTIONS}/close", "invalid_field", {}, tenant=OPERATOR),
    Case("POST", REVOCATIONS, "missing_id", {}),
    Case("POST", REVOCATIONS, "invalid_id", {"user_id": "a b"}),
    Case("PUT", LIMITS, "invalid_field", {"sends": 1}, tenant=OPERATOR),
    Case("PUT", LOG_LEVEL, "invalid_field", {"level": "loud"}, tenant=OPERATOR),
    # Queries.
    Case("GET", f"{MESSAGES}?cursor=what", "invalid_cursor"),
    Case("GET", f"{MESSAGES}?cursor=a:1&cursor=a:1", "bad_request"),
    Case("GET", "/ws/stats?tenant_id=a:b", "invalid_id"),
    Case("GET", f"{CONNECTIONS}?limit=0", "invalid_field"),
    Case("GET", f"{CONNECTIONS}?user_id=a%20b", "invalid_id"),
    Case("DELETE", f"{REVOCATIONS}?which=all", "invalid_field"),
    Case("DELETE", f"{REVOCATIONS}?token_id=a%20b", "invalid_id"),
    Case("DELETE", f"{REVOCATIONS}?user_id=nobody", "not_found"),
    Case("GET", f"{EVENTS}?format=morse", "bad_request"),
    Case("GET", f"{EVENTS}?cursor=what", "invalid_cursor"),
    Case("GET", f"{EVENTS}?token=a.b.c", "token_invalid", scopes=None),
    Case("GET", f"{EVENTS}?tenant_id=evil", "forbidden"),
    Case("GET", f"{EVENTS}/c-1/stream", "unknown_task"),
    Case("POST", EVENTS, "method_not_allowed", {}),
    # What is there, and what is not.
    Case("GET", "/api/chat/tasks/none", "unknown_task"),
    Case("POST", "/api/chat/tasks/none/cancel", "unknown_task"),
    Case("POST", "/api/chat/cancel", "unknown_task", {"client_message_id": "none"}),
    Case("POST", f"{TASK}/input", "input_not_wanted", {"input_id": "i-1", "value": 1}),
    Case("POST", f"{TASK}/input", "input_expired", {"input_id": "i-1", "value": 1}, before=is_late),
    Case("POST", SEND, "idempotency_conflict", {"message": "other", "client_message_id": "m-0"}),
    Case("POST", SEND, "session_busy", {**HELLO, "busy_policy": "reject"}),
    Case("POST", SEND, "agent_forbidden", HELLO, before=refuse_agent(403, "agent_forbidden")),
    # Not now.
    Case("POST", SEND, "rate_limited", HELLO, before=over),
    Case("POST", SEND, "too_many_tasks", HELLO, before=lambda world: setattr(world.tasks, "most", 1)),
    Case("POST", SEND, "queue_full", HELLO, before=refuse("queue", QueueFull("full"))),
    Case("POST", SEND, "access_unknown", HELLO, before=refuse_agent(503, "access_unknown", 2)),
    Case("POST", SEND, "redis_unavailable", HELLO, before=refuse("log", AWAY)),
    Case("GET", TASK, "redis_unavailable", before=refuse("log", AWAY)),
    Case("GET", MESSAGES, "redis_unavailable", before=refuse("log", AWAY)),
    Case("POST", "/api/broadcast", "redis_unavailable", {"to": {"topic": "a"}, "payload": 1},
         before=refuse("commands", AWAY)),
    Case("GET", "/ws/stats", "redis_unavailable", before=refuse("commands", AWAY)),
    Case("GET", "/api/chat/stats", "redis_unavailable", tenant=OPERATOR, before=refuse("commands", AWAY)),
    Case("GET", "/health/detailed", "redis_unavailable", before=refuse("commands", AWAY)),
    Case("GET", CONNECTIONS, "redis_unavailable", before=refuse("commands", AWAY)),
    Case("GET", LIMITS, "redis_unavailable", before=refuse("commands", AWAY)),
    Case("GET", REVOCATIONS, "redis_unavailable", before=refuse("revocations", AWAY)),
    Case("POST", REVOCATIONS, "too_many_revocations", {"user_id": "ann"},
         before=refuse("revocations", LimitReached("full"))),
    Case("POST", SEND, "internal_error", HELLO, before=broken),
]  # fmt: skip


async def ask(world: World, case: Case) -> httpx.Response:
    """Carry a case out, behind a send whose task is ``{sent}``."""
    who = HEADERS | world.bearer(*SCOPES)
    async with client_of(world) as client:
        sent = await client.post(SEND, json={**HELLO, "client_message_id": "m-0"}, headers=who)
        await world.revocations.revoke(Revocation("user", "acme", "known", 0.0, 0), 0.0)
        case.before(world)
        headers = {"X-Session-ID": "s-1", "X-Agent-ID": "sales"} | token_of(world, case)
        content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
        given = [*(one for one in headers.items() if one[0] not in case.headers), *case.headers.items()]
        path = case.path.replace("{sent}", sent.json()["task_id"])
        return await client.request(
            case.method, path, headers=given, content=None if case.body is None else content
        )


def token_of(world: World, case: Case) -> dict[str, str]:
    if case.scopes is None:
        return {}
    if case.scopes == "expired":
        return world.bearer(*SCOPES, ttl_s=-600)
    if isinstance(case.scopes, str):
        return {"Authorization": f"Bearer {case.scopes}"}
    return world.bearer(*case.scopes, tenant=case.tenant, user_id="bob")


@pytest.mark.parametrize("case", [*GOOD, *BAD], ids=str)
async def test_answers(case: Case) -> None:
    """Status, headers, media type and every field are told; and the answer is the one that was meant."""
    answer = await ask(World(), case)

    if isinstance(case.says, int):
        assert answer.status_code == case.says, answer.text
    else:
        assert answer.json()["error_code"] == case.says
    assert complaints(with_jwt(), case.method, case.path, answer) == []


NOT_TRIED_HERE = {
    ("GET", "/api/chat/sessions/{session_id}/events"): {"200", "204"},  # see test_streams
    ("POST", "/api/chat/sessions/{session_id}/events"): {"200"},
    ("GET", "/api/chat/sessions/{session_id}/events/{chat_id}/stream"): {"200", "204"},
    ("GET", "/openapi.json"): {"304"},  # see test_document
}
CODES_NOT_TRIED_HERE = {
    "too_many_connections", "pod_full", "draining",  # see test_streams
    "request_timeout",  # see test_http
}  # fmt: skip


def test_every_answer_is_tried() -> None:
    """Each status of each operation that is no refusal, and each error code that is told at all."""
    told: set[tuple[str, str, str]] = set()
    codes: set[str] = set()
    for method, path, operation in operations(with_jwt()):
        for status, response in operation["responses"].items():
            problem = response.get("content", {}).get("application/problem+json")
            if problem is None:
                told.add((method, path, status))
            else:
                codes |= set(problem["schema"]["properties"]["error_code"]["enum"])
    tried = {(case.method, find(with_jwt(), case.method, case.path)[0], str(case.says)) for case in GOOD}

    untried = {(*one, status) for one, statuses in NOT_TRIED_HERE.items() for status in statuses}
    assert told - tried == untried
    assert codes - {case.says for case in BAD} == CODES_NOT_TRIED_HERE


# What a request needs.


def first_of_each() -> list[tuple[Case, dict[str, Any]]]:
    """A case that goes well of each operation, and the operation."""
    found: dict[str, tuple[Case, dict[str, Any]]] = {}
    for case in GOOD:
        operation = find(with_jwt(), case.method, case.path)[1]
        found.setdefault(operation["operationId"], (case, operation))
    return list(found.values())


@pytest.mark.parametrize(("case", "operation"), first_of_each(), ids=lambda one: str(one)[:40])
async def test_scopes_and_tokens(case: Case, operation: dict[str, Any]) -> None:
    """Those that are told are enough, and each is needed; the token stands in the header alone."""
    if not operation["security"]:
        assert (await ask(World(), case._replace(scopes=None))).status_code == case.says
        return
    [scopes] = [one["bearer"] for one in operation["security"] if "bearer" in one]
    assert (await ask(World(), case._replace(scopes=tuple(scopes)))).status_code == case.says
    for scope in scopes:
        others = tuple(one for one in SCOPES if one != scope)
        assert (await ask(World(), case._replace(scopes=others))).json()["error_code"] == "scope_missing"
    token = World().bearer(*SCOPES)["Authorization"].removeprefix("Bearer ")
    asked = f"{case.path}{'&' if '?' in case.path else '?'}token={token}"
    answer = await ask(World(), case._replace(path=asked, scopes=None))
    assert (answer.status_code == case.says) == any("query_token" in one for one in operation["security"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", SEND, HELLO), ("GET", MESSAGES, None), ("GET", TASK, None), ("POST", f"{TASK}/cancel", None)],
)
async def test_headers_that_are_needed(method: str, path: str, body: Any) -> None:
    """Without tokens: leaving one out is refused if the document calls it required, and else it is not."""
    for parameter in find(without_tokens(), method, path)[1]["parameters"]:
        if parameter["in"] != "header":
            continue
        async with client_of(StubPod()) as client:
            sent = (await client.post(SEND, json=HELLO, headers=HEADERS)).json()["task_id"]
            given = {name: value for name, value in HEADERS.items() if name != parameter["name"]}
            answer = await client.request(method, path.replace("{sent}", sent), json=body, headers=given)
        assert (answer.status_code == 400) == parameter["required"], parameter["name"]


# That this would show.


def changed(answer: httpx.Response, **fields: Any) -> httpx.Response:
    """An answer with other fields; None leaves one out."""
    said = {name: value for name, value in (answer.json() | fields).items() if value is not None}
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return httpx.Response(answer.status_code, headers=headers, json=said)


@pytest.mark.parametrize(
    "name", ["success", "task_id", "queue_name", "estimated_time", "duplicate", "cursor"]
)
async def test_a_field_that_is_missing(name: str) -> None:
    """Is found, and so is one of another type, and one more."""
    case = Case("POST", SEND, 200, HELLO)
    answer = await ask(World(), case)

    for other in (changed(answer, **{name: None}), changed(answer, **{name: [1]}), changed(answer, more=1)):
        assert len(complaints(with_jwt(), "POST", SEND, other)) == 1


async def test_a_refusal_that_is_wrong() -> None:
    """Another code, another status, no header, another media type: each is found."""
    case = Case("POST", SEND, "rate_limited", HELLO, before=over)
    answer = await ask(World(), case)
    assert complaints(with_jwt(), "POST", SEND, answer) == []

    wrong = [
        changed(answer, error_code="session_taken"),
        changed(answer, status=503),
        changed(answer, title=None),
    ]
    less, other, teapot = (httpx.Response(429, headers=answer.headers, content=answer.content) for _ in "123")
    del less.headers["retry-after"]
    other.headers["content-type"] = "application/json"
    teapot.status_code = 418
    for one in (*wrong, less, other, teapot):
        assert len(complaints(with_jwt(), "POST", SEND, one)) == 1, one.headers
    limits = await ask(World(), Case("GET", LIMITS, 200))
    limits.headers["RateLimit"] = "untold"
    assert complaints(with_jwt(), "GET", LIMITS, limits) == ["the header ratelimit"]
