"""Which addresses a pod has, at which port, and which pages may read what stands there."""

from __future__ import annotations

from functools import reduce
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from gateway.app import build_admin_app, build_app
from tests.unit.gateway.web import BODY, StubPod, check_problem, client_of, with_tokens

HEALTH = ["/health", "/livez", "/readyz"]
CLIENTS = [
    ("POST", "/api/broadcast"),
    ("POST", "/api/chat/tasks/t-1/input"),
    ("POST", "/api/chat/send"),
    ("GET", "/api/chat/sessions/s-1/messages"),
    ("GET", "/api/chat/sessions/s-1/events"),
    ("GET", "/api/chat/sessions/s-1/events/c-1/stream"),
    ("GET", "/api/chat/tasks/t-1"),
    ("POST", "/api/chat/tasks/t-1/cancel"),
    ("POST", "/api/chat/cancel"),
]
OPERATORS = [
    ("GET", "/health/detailed"),
    ("GET", "/ws/stats"),
    ("GET", "/api/chat/stats"),
    ("GET", "/api/admin/connections"),
    ("POST", "/api/admin/connections/close"),
    ("GET", "/api/admin/revocations"),
    ("POST", "/api/admin/revocations"),
    ("DELETE", "/api/admin/revocations"),
    ("GET", "/api/admin/log-level"),
    ("PUT", "/api/admin/log-level"),
    ("GET", "/api/admin/tenants/acme/limits"),
    ("PUT", "/api/admin/tenants/acme/limits"),
]
METRICS = "/metrics"
DOCUMENT = "/openapi.json"
ORIGIN = "https://app.example.com"


async def answers(pod: StubPod, method: str, path: str, *, admin: bool = False) -> bool:
    """Whether there is something; who has no token is asked for one."""
    async with client_of(pod, admin=admin) as client:
        response = await client.request(method, path)
    if response.status_code == 404:
        check_problem(response, 404, "not_found")
        return False
    check_problem(response, 401, "token_missing")
    return True


# Ports.


@pytest.mark.parametrize(("method", "path"), OPERATORS)
async def test_operators_addresses(method: str, path: str) -> None:
    """With ADMIN_PORT they are there only; without it they are where everything is."""
    assert await answers(with_tokens(), method, path)
    apart = with_tokens(admin_port=9_000)
    assert not await answers(apart, method, path)
    assert await answers(apart, method, path, admin=True)


@pytest.mark.parametrize(("method", "path"), CLIENTS)
async def test_clients_addresses(method: str, path: str) -> None:
    """They are where clients come, and not at the operators' port."""
    assert await answers(with_tokens(), method, path)
    apart = with_tokens(admin_port=9_000)
    assert await answers(apart, method, path)
    assert not await answers(apart, method, path, admin=True)


@pytest.mark.parametrize("path", [*HEALTH, DOCUMENT])
async def test_health_is_everywhere(path: str) -> None:
    """A load balancer asks where the clients are, an operator where the others are; neither has a token.

    What a port answers is told there, likewise.
    """
    apart = with_tokens(admin_port=9_000)
    for admin in (False, True):
        async with client_of(apart, admin=admin) as client:
            assert (await client.get(path)).status_code == 200


async def test_metrics_are_for_operators() -> None:
    """Where clients come they need a token with the scope; at a port of its own the network decides."""
    pod = with_tokens()
    async with client_of(pod) as client:
        check_problem(await client.get(METRICS), 401, "token_missing")
        check_problem(await client.get(METRICS, headers=pod.bearer("chat")), 403, "scope_missing")
        answer = await client.get(METRICS, headers=pod.bearer("stats"))
    assert answer.status_code == 200
    assert "orchestrator_sends_total" in answer.text
    apart = with_tokens(admin_port=9_000)
    async with client_of(apart) as client, client_of(apart, admin=True) as operator:
        check_problem(await client.get(METRICS, headers=apart.bearer("stats")), 404, "not_found")
        assert (await operator.get(METRICS)).status_code == 200


def test_every_address_was_thought_of() -> None:
    """A new one is entered above, under those whom it is for."""

    def paths(app: Any) -> set[str]:
        return {route.path for route in app.routes if isinstance(route, Route)}

    def known(some: list[tuple[str, str]]) -> set[str]:
        names = {"s-1": "session_id", "t-1": "task_id", "c-1": "chat_id", "acme": "tenant_id"}
        fields = {f"/{value}": f"/{{{name}}}" for value, name in names.items()}
        paths = {path for _method, path in some}
        return {reduce(lambda path, one: path.replace(*one), fields.items(), path) for path in paths}

    apart = with_tokens(admin_port=9_000).as_pod()
    assert paths(build_app(apart)) == {*HEALTH, DOCUMENT, *known(CLIENTS)}
    assert paths(build_admin_app(apart)) == {*HEALTH, DOCUMENT, *known(OPERATORS), METRICS}
    assert paths(build_app(with_tokens().as_pod())) == {
        *HEALTH, DOCUMENT, *known(CLIENTS), *known(OPERATORS), METRICS,
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/api/admin", "/api/admin/", "/api/admin/connections/", "/ws/stats/", "//livez"]
)
async def test_almost_an_address(path: str) -> None:
    """Is none: what a proxy does not let through must not be reached by a slash more."""
    assert not await answers(with_tokens(), "GET", path)


# Pages of strangers, where there are no tokens.


@pytest.mark.parametrize(
    ("origin", "host", "ok"),
    [
        (None, "127.0.0.1:8080", True),
        (None, "localhost:8080", True),
        (None, "[::1]:8080", True),
        (None, "gateway:8080", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://localhost:8080", "localhost:8080", True),
        (ORIGIN, "127.0.0.1:8080", True),
        ("https://evil.test", "127.0.0.1:8080", False),
        ("null", "127.0.0.1:8080", False),
        ("http://evil.test:8080", "evil.test:8080", False),
        (None, "evil.test:8080", False),
        (None, "127.0.0.1.evil.test", False),
    ],
)
@pytest.mark.parametrize(("method", "path"), [*CLIENTS, *OPERATORS, ("GET", DOCUMENT)])
async def test_pages_of_strangers(method: str, path: str, origin: str | None, host: str, ok: bool) -> None:
    """A page that a developer happens to look at uses nothing of his pod, whatever its name points to."""
    pod = StubPod(allowed_origins=ORIGIN)
    headers = {"Host": host, "Content-Type": "text/plain"} | ({} if origin is None else {"Origin": origin})
    async with client_of(pod) as client:
        response = await client.request(method, path, content=b"{}", headers=headers)

    if ok:
        assert response.status_code != 403
    else:
        check_problem(response, 403, "origin_not_allowed")
        assert pod.refused == {"origin_not_allowed": 1}
        assert (pod.commands.called, pod.log.calls) == ([], [])


@pytest.mark.parametrize("path", HEALTH)
async def test_health_is_for_every_name(path: str) -> None:
    """A load balancer calls the pod as it likes."""
    async with client_of(StubPod()) as client:
        assert (await client.get(path, headers={"Host": "pods.example.com"})).status_code == 200


@pytest.mark.parametrize(("method", "path"), [*CLIENTS, *OPERATORS])
async def test_with_tokens_pages_are_not_asked(method: str, path: str) -> None:
    """A page has no token of anybody else's, so its name is of no interest."""
    async with client_of(with_tokens()) as client:
        response = await client.request(method, path, headers={"Host": "a.test", "Origin": "http://b.test"})

    check_problem(response, 401, "token_missing")


# Pages of other origins (CORS).


def preflight(client: httpx.AsyncClient, origin: str, method: str = "POST", headers: str = "") -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return client.options(
        "/api/chat/send", headers=asked | ({"Access-Control-Request-Headers": headers} if headers else {})
    )


LISTED = {"allowed_origins": f"{ORIGIN}, https://*.example.org"}


@pytest.mark.parametrize("origin", [ORIGIN, "https://a.example.org"])
@pytest.mark.parametrize("admin", [False, True])
async def test_pages_that_are_listed(origin: str, admin: bool) -> None:
    """They may send what clients send, and read what stands in the answers; cookies are no matter."""
    async with client_of(with_tokens(**LISTED, admin_port=9_000), admin=admin) as client:
        wanted = "authorization, content-type, x-agent-id, x-session-id, idempotency-key, traceparent"
        allowed = await preflight(client, origin, headers=wanted)
        answer = await client.get("/livez", headers={"Origin": origin})

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "POST" in allowed.headers["access-control-allow-methods"]
    told = allowed.headers["access-control-allow-headers"].lower()
    assert {name.strip() for name in wanted.split(",")} <= {name.strip() for name in told.split(",")}
    assert answer.headers["access-control-allow-origin"] == origin
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert {"retry-after", "ratelimit", "ratelimit-policy"} <= {name.strip() for name in exposed.split(",")}
    for response in (allowed, answer):
        assert "access-control-allow-credentials" not in response.headers
        assert "origin" in response.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.test",
        f"{ORIGIN}.evil.test",
        "https://evilapp.example.com",
        "http://app.example.com",
        f"{ORIGIN}:8443",
        "https://example.org",
        "null",
    ],
)
async def test_pages_that_are_not_listed(origin: str) -> None:
    """They are told nothing that a browser would take for a permission."""
    async with client_of(with_tokens(**LISTED)) as client:
        responses = [await preflight(client, origin), await client.get("/livez", headers={"Origin": origin})]

    for response in responses:
        assert "access-control-allow-origin" not in response.headers
    assert responses[0].status_code == 400


@pytest.mark.parametrize("method", ["PATCH", "TRACE"])
async def test_methods_that_nobody_has(method: str) -> None:
    """They are not permitted in advance."""
    async with client_of(with_tokens(**LISTED)) as client:
        assert (await preflight(client, ORIGIN, method)).status_code == 400


async def test_headers_that_nobody_sends() -> None:
    """Nor are headers that mean something to proxies."""
    async with client_of(with_tokens(**LISTED)) as client:
        assert (await preflight(client, ORIGIN, headers="x-forwarded-for")).status_code == 400


async def test_without_a_list() -> None:
    """No page of another origin may read anything."""
    async with client_of(with_tokens()) as client:
        refused = await preflight(client, ORIGIN)
        answer = await client.get("/livez", headers={"Origin": ORIGIN})

    check_problem(refused, 405, "method_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


async def test_errors_can_be_read_too() -> None:
    """A page learns why it was refused, and when to come back."""
    async with client_of(with_tokens(**LISTED)) as client:
        response = await client.post("/api/chat/send", content=BODY, headers={"Origin": ORIGIN})

    check_problem(response, 401, "token_missing")
    assert response.headers["access-control-allow-origin"] == ORIGIN
