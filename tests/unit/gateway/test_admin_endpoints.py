"""Administration: who may see and change what, and what is no order."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from backplane.errors import LimitReached, RedisUnavailable
from backplane.log import LEVEL
from backplane.revocations import Kind, Revocation
from gateway import control
from gateway.control import CloseOrder
from gateway.identity import OPERATOR, SCOPES
from tests.unit.gateway.web import StubPod, check_problem, client_of, with_tokens

CONNECTIONS = "/api/admin/connections"
CLOSE = "/api/admin/connections/close"
REVOCATIONS = "/api/admin/revocations"
LIMITS = "/api/admin/tenants/acme/limits"
ALL = [
    ("GET", CONNECTIONS, None),
    ("POST", CLOSE, {"user_id": "ann"}),
    ("GET", REVOCATIONS, None),
    ("POST", REVOCATIONS, {"user_id": "ann"}),
    ("DELETE", f"{REVOCATIONS}?user_id=ann", None),
    ("GET", LIMITS, None),
    ("PUT", LIMITS, {"sends_per_minute": 5}),
]


@pytest.fixture
def pod() -> StubPod:
    pod = with_tokens()
    pod.commands.replies = {"SMEMBERS": set(), "HMGET": [None] * 5}
    return pod


@pytest.fixture
async def client(pod: StubPod) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pod) as client:
        yield client


def tenant(pod: StubPod, name: str = "acme") -> dict[str, str]:
    """A tenant's administrator."""
    return pod.bearer("admin", tenant=name)


def operator(pod: StubPod) -> dict[str, str]:
    return pod.bearer("admin", tenant=OPERATOR)


def changed(pod: StubPod) -> bool:
    """Whether anything was written or said to others."""
    commands = {words[0] for words in pod.commands.called}
    return bool(commands & {"PUBLISH", "DEL", "HSET"} or pod.revocations.entries)


# Who may.


@pytest.mark.parametrize(("method", "path", "body"), ALL)
async def test_the_scope_is_needed(
    pod: StubPod, client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    """For each of them; no other scope stands for it, also not an operator's."""
    others = [scope for scope in SCOPES if scope != "admin"]
    for who in ("acme", OPERATOR):
        response = await client.request(method, path, json=body, headers=pod.bearer(*others, tenant=who))
        check_problem(response, 403, "scope_missing")
    check_problem(await client.request(method, path, json=body), 401, "token_missing")
    bad = {"Authorization": "Bearer a.b.c"}
    check_problem(await client.request(method, path, json=body, headers=bad), 401, "token_invalid")
    assert not changed(pod)


@pytest.mark.parametrize(("method", "path", "body"), ALL)
async def test_an_administrator_of_another_tenant(
    pod: StubPod, client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    """Is told that it is not for him, wherever he names the tenant."""
    if body is not None and path != LIMITS:
        body = {**body, "tenant_id": "acme"}
    elif path != LIMITS:
        path += ("&" if "?" in path else "?") + "tenant_id=acme"
    response = await client.request(method, path, json=body, headers=tenant(pod, "evil"))

    check_problem(response, 403, "forbidden")
    assert not changed(pod)


@pytest.mark.parametrize(("method", "path", "body"), ALL)
async def test_revoked_administrators(method: str, path: str, body: Any) -> None:
    """They are none any more."""
    pod = with_tokens()
    pod.authenticator._revoked = lambda _grant: True
    async with client_of(pod) as client:
        response = await client.request(method, path, json=body, headers=operator(pod))

    check_problem(response, 401, "token_revoked")


@pytest.mark.parametrize(("method", "path", "body"), ALL)
async def test_without_tokens_everybody_may(method: str, path: str, body: Any) -> None:
    """AUTH=none is for a developer's own machine."""
    pod = StubPod()
    pod.commands.replies = {"SMEMBERS": set(), "HMGET": [None] * 5}
    if path.startswith(REVOCATIONS):
        body, path = (
            (body and {**body, "tenant_id": "acme"}),
            f"{path}{'&' if '?' in path else '?'}tenant_id=acme",
        )
        await pod.revocations.revoke(Revocation("user", "acme", "ann", 0.0, 0), 0.0)
    if method == "POST":
        path = path.partition("?")[0]
    async with client_of(pod) as client:
        response = await client.request(method, path, json=body)

    assert response.status_code in (200, 201, 202), response.text


# Connections.


def owned(number: int, **more: str) -> list[bytes]:
    entry = {
        "connection_id": f"c-{number}",
        "tenant_id": "acme",
        "session_id": "s-1",
        "user_id": "ann",
        **more,
    }
    return [f"c-{number}".encode(), json.dumps(entry).encode()]


@pytest.fixture
def crowded(pod: StubPod) -> StubPod:
    """With three connections on one pod, one of them of another tenant."""
    entries = [*owned(1), *owned(2, user_id="bob", session_id="s-2"), *owned(3, tenant_id="other")]
    pod.commands.replies = {"SMEMBERS": {b"p-1"}, "GET": b"{}", "HSCAN": [b"0", entries]}
    return pod


@pytest.mark.parametrize(
    ("who", "query", "found"),
    [
        ("acme", "", ["c-1", "c-2"]),
        ("acme", "tenant_id=acme", ["c-1", "c-2"]),
        ("acme", "user_id=bob", ["c-2"]),
        ("acme", "session_id=s-1&user_id=ann", ["c-1"]),
        ("acme", "session_id=s-1&user_id=bob", []),
        ("other", "", ["c-3"]),
        ("nobody", "", []),
        (OPERATOR, "", ["c-1", "c-2", "c-3"]),
        (OPERATOR, "tenant_id=other", ["c-3"]),
        (OPERATOR, "session_id=s-1", ["c-1", "c-3"]),
    ],
)
async def test_listing(
    crowded: StubPod, client: httpx.AsyncClient, who: str, query: str, found: list[str]
) -> None:
    """A tenant's administrator sees its own whatever is asked, an operator what is asked for."""
    answer = (await client.get(f"{CONNECTIONS}?{query}", headers=crowded.bearer("admin", tenant=who))).json()

    assert [one["connection_id"] for one in answer["connections"]] == found
    assert answer["more"] is False
    assert all(one["pod_id"] == "p-1" for one in answer["connections"])


async def test_a_part_of_a_list(crowded: StubPod, client: httpx.AsyncClient) -> None:
    """As many as are asked for, and whether there are more."""
    answer = (await client.get(f"{CONNECTIONS}?limit=2", headers=operator(crowded))).json()

    assert (len(answer["connections"]), answer["more"]) == (2, True)


@pytest.mark.parametrize("limit", ["0000000100999", "00000001" + "9" * 5_000, "000000000000500"])
async def test_limits_with_zeros_before_them(crowded: StubPod, client: httpx.AsyncClient, limit: str) -> None:
    """They are no way past the limit, and no mistake of ours."""
    response = await client.get(CONNECTIONS, params={"limit": limit}, headers=operator(crowded))

    check_problem(response, 400, "invalid_field")


@pytest.mark.parametrize(
    "limit", ["0", "1001", "-1", "", "1.5", "x", "1e3", "9" * 5_000, "\u0661", "+5", " 5"]
)
async def test_limits_that_are_none(crowded: StubPod, client: httpx.AsyncClient, limit: str) -> None:
    """A number from 1 to 1,000 is a limit."""
    response = await client.get(CONNECTIONS, params={"limit": limit}, headers=operator(crowded))

    assert "limit" in check_problem(response, 400, "invalid_field")["detail"]


@pytest.mark.parametrize("query", ["tenant_id=a:b", "tenant_id=", "tenant_id=*"])
async def test_lists_of_no_tenant(crowded: StubPod, client: httpx.AsyncClient, query: str) -> None:
    """What is no id is none, also from an operator."""
    check_problem(await client.get(f"{CONNECTIONS}?{query}", headers=operator(crowded)), 400, "invalid_id")


# Closing.


async def test_closing(pod: StubPod, client: httpx.AsyncClient) -> None:
    """The order goes to all pods, with the tenant of whoever gave it."""
    body = {"user_id": "ann", "session_id": "s-1", "reconnect": False, "reason": "enough"}
    response = await client.post(CLOSE, json=body, headers=tenant(pod))

    assert (response.status_code, response.json()) == (202, {"success": True})
    [(_command, channel, payload)] = pod.commands.called
    assert channel == pod.keys.control_channel
    assert control.decode(payload) == CloseOrder("acme", "s-1", "ann", None, False, "enough")


@pytest.mark.parametrize("body", [{"connection_id": "c-3"}, {"session_id": "s-1"}, {"user_id": "ann"}])
async def test_closing_what_is_not_named_by_its_tenant(
    pod: StubPod, client: httpx.AsyncClient, body: dict[str, str]
) -> None:
    """A connection's id, of whosesoever it is, closes none of another tenant."""
    await client.post(CLOSE, json=body, headers=tenant(pod))
    [(_command, _channel, payload)] = pod.commands.called
    order = control.decode(payload)

    assert order is not None
    assert order.tenant_id == "acme"


async def test_an_operator_closes_anything_but_everything(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A slip must not close all sockets of the service."""
    for body in ({}, {"reconnect": False}, {"reason": "x"}):
        check_problem(await client.post(CLOSE, json=body, headers=operator(pod)), 422, "invalid_field")
    assert not changed(pod)
    await client.post(CLOSE, json={"connection_id": "c-1"}, headers=operator(pod))
    [(_command, _channel, payload)] = pod.commands.called

    assert control.decode(payload) == CloseOrder(connection_id="c-1")


@pytest.mark.parametrize(
    "body",
    [
        {"tenant_id": ""},
        {"user_id": ""},
        {"user_id": 5},
        {"user_id": None, "connection": "c-1"},
        {"user_id": "x" * 257},
        {"user_id": "ann", "reconnect": "no"},
        {"user_id": "ann", "reason": ""},
        {"user_id": "ann", "reason": "x" * 101},
        {"userid": "ann"},
    ],
    ids=lambda value: str(value)[:40],
)
async def test_orders_that_are_none(pod: StubPod, client: httpx.AsyncClient, body: Any) -> None:
    """A word that is misspelled is told, and not passed over: the rest would mean more than was meant."""
    check_problem(await client.post(CLOSE, json=body, headers=tenant(pod)), 422, "invalid_field")
    assert not changed(pod)


@pytest.mark.parametrize("body", [b"", b"{", b"hello", b'{"user_id":"\xff"}', b'{"a":' * 50])
async def test_bodies_that_are_no_json(pod: StubPod, client: httpx.AsyncClient, body: bytes) -> None:
    """They are told so."""
    for path in (CLOSE, REVOCATIONS):
        response = await client.post(path, content=body, headers=tenant(pod))
        assert response.status_code in (400, 422)
        assert response.json()["error_code"] in ("not_json", "invalid_field")
    assert not changed(pod)


async def test_a_large_body(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Administrators have limits too."""
    body = json.dumps({"user_id": "ann"}).encode() + b" " * 3_000

    check_problem(await client.post(CLOSE, content=body, headers=tenant(pod)), 413, "message_too_large")


# Revocations.


@pytest.mark.parametrize(
    ("body", "kind", "name"),
    [
        ({"token_id": "t-1"}, "token", "t-1"),
        ({"token_id": "t:1/*?"}, "token", "t:1/*?"),
        ({"user_id": "ann@example.org"}, "user", "ann@example.org"),
        ({"tenant_id": "acme"}, "tenant", ""),
    ],
)
async def test_revoking(
    pod: StubPod, client: httpx.AsyncClient, body: dict[str, str], kind: Kind, name: str
) -> None:
    """One token, or all of a user or a tenant up to now; kept for as long as a token may live."""
    began = time.time()
    response = await client.post(REVOCATIONS, json=body, headers=tenant(pod))

    assert response.status_code == 201
    [entry] = pod.revocations.entries.values()
    assert (entry.kind, entry.tenant_id, entry.name) == (kind, "acme", name)
    assert began <= entry.issued_before <= time.time()
    assert entry.until == pytest.approx(entry.issued_before + pod.settings.revocations_kept_s, abs=1)
    assert response.json() == {
        "kind": kind,
        "tenant_id": "acme",
        "name": name,
        "issued_before": entry.issued_before,
        "until": entry.until,
    }


@pytest.mark.parametrize(("before", "kept"), [(5.5, 5.5), (0, 0.0), (-1, -1.0), (4e9, None), (1e300, None)])
async def test_revoking_what_was_issued_before(
    pod: StubPod, client: httpx.AsyncClient, before: float, kept: float | None
) -> None:
    """A time in the past; one in the future would hit the tokens that replace those."""
    await client.post(REVOCATIONS, json={"user_id": "ann", "issued_before": before}, headers=tenant(pod))
    [entry] = pod.revocations.entries.values()

    assert entry.issued_before == (pytest.approx(time.time(), abs=60) if kept is None else kept)


async def test_an_operator_says_whose(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A user's name alone could be anybody's."""
    for body in ({"user_id": "ann"}, {"token_id": "t-1"}, {}):
        check_problem(await client.post(REVOCATIONS, json=body, headers=operator(pod)), 422, "missing_id")
    check_problem(await client.delete(f"{REVOCATIONS}?user_id=a", headers=operator(pod)), 422, "missing_id")
    assert pod.revocations.entries == {}
    await client.post(REVOCATIONS, json={"user_id": "ann", "tenant_id": "other"}, headers=operator(pod))

    assert list(pod.revocations.entries) == [("user", "other", "ann")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"token_id": "t-1", "user_id": "ann"}, "invalid_field"),
        ({"token_id": ""}, "invalid_field"),
        ({"token_id": "x" * 257}, "invalid_field"),
        ({"token_id": 5}, "invalid_field"),
        ({"user": "ann"}, "invalid_field"),
        ({"user_id": "ann", "issued_before": "now"}, "invalid_field"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_revocations_that_are_none(
    pod: StubPod, client: httpx.AsyncClient, body: Any, code: str
) -> None:
    """What is not clear revokes nothing: a misspelled user must not become the whole tenant."""
    check_problem(await client.post(REVOCATIONS, json=body, headers=tenant(pod)), 422, code)

    assert pod.revocations.entries == {}


@pytest.mark.parametrize("body", [{}, {"issued_before": 5}])
async def test_a_whole_tenant_is_named(pod: StubPod, client: httpx.AsyncClient, body: Any) -> None:
    """Nobody revokes it by leaving something out, also not the only one that he could mean."""
    check_problem(await client.post(REVOCATIONS, json=body, headers=tenant(pod)), 422, "missing_id")
    check_problem(await client.delete(REVOCATIONS, headers=tenant(pod)), 422, "missing_id")
    assert pod.revocations.entries == {}


@pytest.mark.parametrize("body", [{"token_id": "stolen"}, {"user_id": "root"}, {}], ids=str)
async def test_operators_are_revoked_by_operators(
    pod: StubPod, client: httpx.AsyncClient, body: dict[str, str]
) -> None:
    """Their tokens are of no tenant, and can be stolen like others."""
    body = {"tenant_id": OPERATOR, **body}
    check_problem(await client.post(REVOCATIONS, json=body, headers=tenant(pod)), 400, "invalid_id")
    assert pod.revocations.entries == {}
    assert (await client.post(REVOCATIONS, json=body, headers=operator(pod))).status_code == 201
    [(_kind, whose, name)] = pod.revocations.entries
    assert (whose, name) == (
        OPERATOR,
        next((body[key] for key in ("token_id", "user_id") if key in body), ""),
    )


@pytest.mark.parametrize("name", ["a b", "a\nb", "\u00fc", "", "x" * 257, "a\tb", "\x7f"])
async def test_token_ids_that_are_none(pod: StubPod, client: httpx.AsyncClient, name: str) -> None:
    """What would break the lines in which revocations are kept is no id."""
    response = await client.post(REVOCATIONS, json={"token_id": name}, headers=tenant(pod))
    assert response.status_code == 422
    response = await client.delete(REVOCATIONS, params={"token_id": name}, headers=tenant(pod))
    assert response.status_code == 422
    assert pod.revocations.entries == {}


@pytest.mark.parametrize("name", ["a b", "a/b", "*", "a\nb", "\u00fc"])
async def test_users_that_are_none(pod: StubPod, client: httpx.AsyncClient, name: str) -> None:
    """Nor is a user whom no token could name."""
    for path in (REVOCATIONS, CLOSE):
        response = await client.post(path, json={"user_id": name}, headers=tenant(pod))
        check_problem(response, 400, "invalid_id")
    for path in (REVOCATIONS, CONNECTIONS):
        method = "DELETE" if path == REVOCATIONS else "GET"
        response = await client.request(method, path, params={"user_id": name}, headers=tenant(pod))
        check_problem(response, 400, "invalid_id")
    assert not changed(pod)


async def test_words_that_lifting_does_not_know(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A misspelled user must not lift what is in force for the whole tenant."""
    await pod.revocations.revoke(Revocation("tenant", "acme", "", 0.0, 0), 0.0)
    for query in ("userid=ann&tenant_id=acme", "tenant_id=acme&x="):
        response = await client.delete(f"{REVOCATIONS}?{query}", headers=tenant(pod))
        check_problem(response, 400, "invalid_field")

    assert len(pod.revocations.entries) == 1


async def test_lifting(pod: StubPod, client: httpx.AsyncClient) -> None:
    """By the same words; what is not there is said not to be."""
    for kind, whose, name in (("user", "acme", "ann"), ("token", "acme", "ann"), ("user", "other", "ann")):
        await pod.revocations.revoke(Revocation(kind, whose, name, 0.0, 0.0), 0.0)  # type: ignore[arg-type]
    response = await client.delete(f"{REVOCATIONS}?user_id=ann", headers=tenant(pod))
    assert (response.status_code, response.json()) == (200, {"success": True})
    assert sorted(pod.revocations.entries) == [("token", "acme", "ann"), ("user", "other", "ann")]
    for query in ("user_id=ann", "token_id=t-9", "user_id=other"):
        response = await client.delete(f"{REVOCATIONS}?{query}", headers=tenant(pod))
        check_problem(response, 404, "not_found")
    both = await client.delete(f"{REVOCATIONS}?token_id=ann&user_id=ann", headers=tenant(pod))
    check_problem(both, 422, "invalid_field")

    assert len(pod.revocations.entries) == 2


async def test_what_is_revoked(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A tenant's administrator sees its own, an operator all or a tenant's."""
    for whose, name in (("acme", "ann"), ("acme", "bob"), ("other", "ann")):
        await pod.revocations.revoke(Revocation("user", whose, name, 1.0, 2), 0.0)

    async def names(headers: dict[str, str], query: str = "") -> list[str]:
        answer = (await client.get(REVOCATIONS + query, headers=headers)).json()
        return [f"{one['tenant_id']} {one['name']}" for one in answer["revocations"]]

    assert await names(tenant(pod)) == ["acme ann", "acme bob"]
    assert await names(tenant(pod, "nobody")) == []
    assert await names(operator(pod)) == ["acme ann", "acme bob", "other ann"]
    assert await names(operator(pod), "?tenant_id=other") == ["other ann"]


async def test_no_room_for_revocations(pod: StubPod, client: httpx.AsyncClient) -> None:
    """It is told, rather than not revoked in silence."""
    pod.revocations.refusal = LimitReached("there are 100000 revocations already")
    response = await client.post(REVOCATIONS, json={"token_id": "t-1"}, headers=tenant(pod))

    assert "100000" in check_problem(response, 503, "too_many_revocations")["detail"]
    assert response.headers["retry-after"] == "60"


@pytest.mark.parametrize(("method", "path", "body"), ALL)
async def test_while_redis_is_away(
    pod: StubPod, client: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    """Nothing is said to be done that is not."""
    pod.commands.up = False
    pod.revocations.refusal = RedisUnavailable("away")
    response = await client.request(method, path, json=body, headers=operator(pod))
    if response.status_code == 422:  # whose?
        response = await client.request(method, path, json=body, headers=tenant(pod))

    check_problem(response, 503, "redis_unavailable")


# Limits.


async def test_limits(pod: StubPod, client: httpx.AsyncClient) -> None:
    """What a tenant has instead of its tier's; its administrator may see it."""
    pod.commands.replies["HMGET"] = [b"500", None, b"0", b"20000", b"enqueue"]
    for headers in (tenant(pod), operator(pod)):
        answer = (await client.get(LIMITS, headers=headers)).json()
        assert answer == {
            "sends_per_minute": 500,
            "sends_per_session_hour": 0,
            "connections": 20_000,
            "busy_policy": "enqueue",
        }

    key = pod.keys.tenant_limits("acme")
    fields = ("sends_per_minute", "sends_per_day", "sends_per_session_hour", "connections", "busy_policy")
    assert pod.commands.called == [("HMGET", key, *fields)] * 2


async def test_setting_limits(pod: StubPod, client: httpx.AsyncClient) -> None:
    """All at once: what is left out is the tier's again."""
    body = {"sends_per_minute": 500, "connections": 0, "busy_policy": "reject"}
    response = await client.put(LIMITS, json=body, headers=operator(pod))
    key = pod.keys.tenant_limits("acme")

    assert (response.status_code, response.json()) == (200, body)
    others = ("sends_per_day", "sends_per_session_hour", "none")
    assert pod.commands.called == [
        ("HSET", key, "sends_per_minute", 500, "connections", 0, "busy_policy", "reject"),
        ("HDEL", key, *others),
    ]


async def test_removing_limits(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Nothing is left of them."""
    await client.put(LIMITS, json={}, headers=operator(pod))

    fields = (
        "sends_per_minute",
        "sends_per_day",
        "sends_per_session_hour",
        "connections",
        "busy_policy",
        "none",
    )
    assert pod.commands.called == [("HDEL", pod.keys.tenant_limits("acme"), *fields)]


async def test_limits_are_for_operators(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A tenant does not raise its own."""
    response = await client.put(LIMITS, json={"sends_per_minute": 0}, headers=tenant(pod))

    check_problem(response, 403, "forbidden")
    assert not changed(pod)


@pytest.mark.parametrize(
    "body",
    [
        {"sends": 5},
        {"handshakes": 5},
        {"sends_per_minute": -1},
        {"sends_per_minute": 1.5},
        {"sends_per_minute": "5"},
        {"busy_policy": "wait"},
        {"busy_policy": 1},
        {"sends_per_minute": True},
        {"sends_per_minute": None},
        {"sends_per_minute": 10**9 + 1},
        {"sends_per_minute": 5, "more": 5},
        [],
    ],
    ids=str,
)
async def test_limits_that_cannot_be_set(pod: StubPod, client: httpx.AsyncClient, body: Any) -> None:
    """They change nothing."""
    response = await client.put(LIMITS, json=body, headers=operator(pod))

    assert response.status_code == 422
    assert response.json()["error_code"] in ("invalid_field", "not_an_object")
    assert not changed(pod)


@pytest.mark.parametrize("name", ["a:b", "a%20b", "*", "%7Ba%7D", "x" * 129])
async def test_limits_of_no_tenant(pod: StubPod, client: httpx.AsyncClient, name: str) -> None:
    """What is no id gets into no key."""
    path = f"/api/admin/tenants/{name}/limits"
    check_problem(await client.get(path, headers=operator(pod)), 400, "invalid_id")
    check_problem(await client.put(path, json={}, headers=operator(pod)), 400, "invalid_id")
    assert pod.commands.called == []


# The log level.


LOG_LEVEL = "/api/admin/log-level"


@pytest.fixture
def _level() -> Iterator[None]:
    before = LEVEL.name
    yield
    LEVEL.set(before)


@pytest.mark.usefixtures("_level")
async def test_the_log_level(pod: StubPod, client: httpx.AsyncClient) -> None:
    """An operator changes it, for a while or for good; the answer says of which pod, and how it stands."""
    by = operator(pod)
    changed = await client.put(LOG_LEVEL, json={"level": "debug", "for_s": 60}, headers=by)
    assert changed.status_code == 200
    assert (changed.json()["level"], LEVEL.name, changed.json()["pod_id"]) == ("debug", "debug", pod.id)
    assert 59 < changed.json()["left_s"] <= 60
    told = (await client.get(LOG_LEVEL, headers=by)).json()
    assert (told["level"], told["configured"], told["lines_dropped"]) == ("debug", "info", 0)
    forever = (await client.put(LOG_LEVEL, json={"level": "warning"}, headers=by)).json()
    assert (forever["level"], forever["left_s"], LEVEL.name) == ("warning", None, "warning")


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_the_log_level_is_for_operators(pod: StubPod, client: httpx.AsyncClient, method: str) -> None:
    """A log has what is of all tenants."""
    body = {"level": "debug"}
    before = LEVEL.name
    for headers, code in (
        (tenant(pod), "forbidden"),
        (pod.bearer("stats", tenant=OPERATOR), "scope_missing"),
    ):
        response = await client.request(method, LOG_LEVEL, json=body, headers=headers)
        check_problem(response, 403, code)
    check_problem(await client.request(method, LOG_LEVEL, json=body), 401, "token_missing")
    assert LEVEL.name == before


@pytest.mark.parametrize(
    "body",
    [
        {}, {"level": "trace"}, {"level": "DEBUG"}, {"level": 10}, {"level": "debug", "for_s": 0},
        {"level": "debug", "for_s": -1}, {"level": "debug", "for_s": 86_401}, {"level": "debug", "for": 1},
    ],
)  # fmt: skip
async def test_levels_that_are_none(pod: StubPod, client: httpx.AsyncClient, body: Any) -> None:
    before = LEVEL.name
    check_problem(await client.put(LOG_LEVEL, json=body, headers=operator(pod)), 422, "invalid_field")
    assert LEVEL.name == before
