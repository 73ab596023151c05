"""Tasks over HTTP: ``GET /api/chat/tasks/{task_id}``, its ``/cancel``, and ``/api/chat/cancel``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from backplane.errors import RedisRefused, RedisUnavailable
from tests.unit.gateway.web import HEADERS, LIMIT, StubPod, check_problem, client_of, send, with_tokens

TENANT = {"X-Tenant-ID": "acme"}


@pytest.fixture
def pod() -> StubPod:
    return StubPod()


@pytest.fixture
async def client(pod: StubPod) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pod) as client:
        yield client


@pytest.fixture
async def sent(client: httpx.AsyncClient) -> dict[str, Any]:
    """The answer to a send."""
    answer: dict[str, Any] = (await send(client)).json()
    return answer


@pytest.fixture
def path(sent: dict[str, Any]) -> str:
    return f"/api/chat/tasks/{sent['task_id']}"


async def test_a_task_is_shown(client: httpx.AsyncClient, sent: dict[str, Any], path: str) -> None:
    """As the send has told it; the tenant is enough."""
    response = await client.get(path, headers=TENANT)
    told = response.json()

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert {name: told[name] for name in ("task_id", "deadline_at", "cursor")} == {
        name: sent[name] for name in ("task_id", "deadline_at", "cursor")
    }
    assert (told["status"], told["session_id"], told["agent_id"]) == ("queued", "s-1", "sales")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"reason":"enough"}', b'{"later":[1]}'])
async def test_a_task_is_cancelled(pod: StubPod, client: httpx.AsyncClient, path: str, body: bytes) -> None:
    """With a reason or without, and without a body."""
    response = await client.post(f"{path}/cancel", content=body, headers=TENANT)

    assert response.status_code == 200
    told = response.json()
    assert (told["status"], told["cancelled"], told["success"]) == ("cancelled", True, True)
    [_run, cancel] = pod.queue.actions
    assert cancel["reason"] == ("enough" if b"enough" in body else "")
    assert (await client.get(path, headers=TENANT)).json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "not_json"),
        (b"\xff", 400, "not_json"),
        (b'{"reason":"\\ud800"}', 400, "not_json"),
        (b"[" * 1_000, 422, "invalid_field"),
        (b"[]", 422, "not_an_object"),
        (b'"enough"', 422, "not_an_object"),
        (b'{"reason":5}', 422, "invalid_field"),
        (b'{"reason":null}', 422, "invalid_field"),
        (b'{"reason":"' + b"x" * 257 + b'"}', 422, "invalid_field"),
        (b"x" * (LIMIT + 1), 413, "message_too_large"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bodies_that_are_wrong(
    pod: StubPod, client: httpx.AsyncClient, path: str, body: bytes, status: int, code: str
) -> None:
    """Are refused, and the task goes on."""
    response = await client.post(f"{path}/cancel", content=body, headers=TENANT)

    check_problem(response, status, code)
    assert pod.tasks.ended == []


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("POST", "/cancel")])
class TestBoth:
    async def test_a_task_that_is_not_there(
        self, client: httpx.AsyncClient, method: str, suffix: str
    ) -> None:
        """404, with its own code: the address is right."""
        response = await client.request(method, f"/api/chat/tasks/nothing{suffix}", headers=TENANT)
        check_problem(response, 404, "unknown_task")

    @pytest.mark.parametrize(
        ("task_id", "status", "code"),
        [("a%20b", 400, "invalid_id"), ("%00", 400, "invalid_id"), ("a%2Fb", 404, "not_found")],
    )
    async def test_what_is_no_id(
        self, client: httpx.AsyncClient, method: str, suffix: str, task_id: str, status: int, code: str
    ) -> None:
        """Reaches no key."""
        response = await client.request(method, f"/api/chat/tasks/{task_id}{suffix}", headers=TENANT)
        check_problem(response, status, code)

    async def test_another_session(
        self, client: httpx.AsyncClient, path: str, method: str, suffix: str
    ) -> None:
        """Who names one means a task of it."""
        response = await client.request(method, path + suffix, headers={**HEADERS, "X-Session-ID": "s-2"})
        check_problem(response, 403, "forbidden")
        assert (await client.request(method, path + suffix, headers=HEADERS)).status_code == 200

    async def test_without_a_tenant(
        self, client: httpx.AsyncClient, path: str, method: str, suffix: str
    ) -> None:
        """Without a token it has to be named."""
        check_problem(await client.request(method, path + suffix), 400, "missing_id")

    @pytest.mark.parametrize("trouble", [RedisUnavailable("away"), RedisRefused("OOM")])
    async def test_redis_is_away(
        self,
        pod: StubPod,
        client: httpx.AsyncClient,
        path: str,
        method: str,
        suffix: str,
        trouble: RedisUnavailable,
    ) -> None:
        """To be tried again."""
        pod.log.refusal = trouble
        response = await client.request(method, path + suffix, headers=TENANT)
        check_problem(response, 503, "redis_unavailable")
        assert int(response.headers["retry-after"]) >= 1

    async def test_tokens(self, method: str, suffix: str) -> None:
        """Another user's is refused, another tenant's is not there, and the right one needs nothing else."""
        pod = with_tokens()
        async with client_of(pod) as client:
            headers: dict[str, Any] = pod.bearer("chat", "listen", user_id="ann")
            bare: dict[str, Any] = {"X_Tenant_ID": None, "X_Tenant_Tier": None}
            sent = (await send(client, **bare, **headers)).json()
            path = f"/api/chat/tasks/{sent['task_id']}{suffix}"
            check_problem(await client.request(method, path), 401, "token_missing")
            for asked, status, code in (
                (pod.bearer("chat", "listen", user_id="bob"), 403, "session_taken"),
                (pod.bearer("chat", "listen", tenant="other"), 404, "unknown_task"),
                (pod.bearer("stats", user_id="ann"), 403, "scope_missing"),
            ):
                check_problem(await client.request(method, path, headers=asked), status, code)
            assert (await client.request(method, path, headers=headers)).status_code == 200


# A cancel by any name.

NAMED = "/api/chat/cancel"


async def test_a_cancel_by_the_tasks_id(
    pod: StubPod, client: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    """As at the task's own address."""
    body = {"task_id": sent["task_id"], "reason": "enough"}
    for _ in range(2):
        told = (await client.post(NAMED, json=body, headers=TENANT)).json()
        assert told == {"success": True, "task_id": sent["task_id"], "status": "cancelled", "cancelled": True}

    [_run, cancel] = pod.queue.actions
    assert (cancel["task_id"], cancel["reason"]) == (sent["task_id"], "enough")


async def test_a_cancel_by_the_messages_id(client: httpx.AsyncClient) -> None:
    """Of its session: another one's message may have the same."""
    body = b'{"message":"hello","client_message_id":"m-1"}'
    tasks = [(await send(client, body, X_Session_ID=session)).json()["task_id"] for session in ("s-1", "s-2")]
    said = {"client_message_id": "m-1"}
    told = (await client.post(NAMED, json=said, headers={**HEADERS, "X-Session-ID": "s-2"})).json()
    assert (told["task_id"], told["status"]) == (tasks[1], "cancelled")
    assert (await client.get(f"/api/chat/tasks/{tasks[0]}", headers=TENANT)).json()["status"] == "queued"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ({}, HEADERS, 400, "missing_id"),
        ({"task_id": None}, HEADERS, 400, "missing_id"),
        ({"client_message_id": "m-1"}, TENANT, 400, "missing_id"),
        ({"client_message_id": "m-1"}, HEADERS, 404, "unknown_task"),
        ({"task_id": "nothing"}, HEADERS, 404, "unknown_task"),
        ({"task_id": "a b"}, HEADERS, 400, "invalid_id"),
        ({"task_id": 5}, HEADERS, 422, "invalid_field"),
        ({"client_message_id": ""}, HEADERS, 422, "invalid_field"),
        ({"client_message_id": "m" * 129}, HEADERS, 422, "invalid_field"),
        ([], HEADERS, 422, "not_an_object"),
    ],
    ids=str,
)
async def test_cancels_of_nothing(
    pod: StubPod,
    client: httpx.AsyncClient,
    sent: dict[str, Any],
    body: Any,
    headers: Any,
    status: int,
    code: str,
) -> None:
    """Are refused, and what runs goes on."""
    check_problem(await client.post(NAMED, json=body, headers=headers), status, code)
    assert (pod.tasks.ended, pod.tasks.status(sent["task_id"])) == ([], "queued")


async def test_whose_cancel_it_is() -> None:
    """Another user's is refused, another tenant's is not there."""
    pod = with_tokens()
    async with client_of(pod) as client:
        bare: dict[str, Any] = {"X_Tenant_ID": None, "X_Tenant_Tier": None}
        mine: dict[str, Any] = pod.bearer("chat", user_id="ann")
        sent = (await send(client, b'{"message":"hello","client_message_id":"m-1"}', **bare, **mine)).json()
        for said in ({"task_id": sent["task_id"]}, {"client_message_id": "m-1"}):
            check_problem(await client.post(NAMED, json=said), 401, "token_missing")
            for asked, status, code in (
                (pod.bearer("chat", user_id="bob"), 403, "session_taken"),
                (pod.bearer("chat", tenant="other"), 404, "unknown_task"),
                (pod.bearer("listen", user_id="ann"), 403, "scope_missing"),
            ):
                headers = {**asked, "X-Session-ID": "s-1"}
                check_problem(await client.post(NAMED, json=said, headers=headers), status, code)
        assert pod.tasks.ended == []
        response = await client.post(NAMED, json=said, headers={**mine, "X-Session-ID": "s-1"})
        assert response.json()["status"] == "cancelled"


# A session that is busy, or left.


@pytest.mark.parametrize(
    ("field", "ok"),
    [
        ({"busy_policy": "enqueue"}, True),
        ({"busy_policy": "wait"}, False),
        ({"cancel_if_left_s": 1}, True),
        ({"cancel_if_left_s": 86_400}, True),
        ({"cancel_if_left_s": None}, True),
        ({"cancel_if_left_s": 0}, False),
        ({"cancel_if_left_s": 86_401}, False),
        ({"cancel_if_left_s": 1.5}, False),
        ({"cancel_if_left_s": "5"}, False),
    ],
    ids=str,
)
async def test_what_a_send_may_ask_for(client: httpx.AsyncClient, field: dict[str, Any], ok: bool) -> None:
    """One of the policies; 1 s to a day."""
    response = await send(client, json.dumps({"message": "hello", **field}).encode())
    if ok:
        assert response.status_code == 200
    else:
        check_problem(response, 422, "invalid_field")


async def test_a_task_that_waits_for_others(client: httpx.AsyncClient, sent: dict[str, Any]) -> None:
    """Is shown as queued, and its time has not begun."""
    held = (await send(client, b'{"message":"hello","busy_policy":"enqueue"}')).json()
    told = (await client.get(f"/api/chat/tasks/{held['task_id']}", headers=TENANT)).json()

    assert (held["deadline_at"], told["status"], told["deadline_at"]) == (None, "queued", None)
    assert sent["deadline_at"] is not None


# The name of a send.


@pytest.mark.parametrize(("key", "ok"), [("k", True), ("k" * 256, True), ("k" * 257, False), ("", False)])
async def test_idempotency_keys(client: httpx.AsyncClient, key: str, ok: bool) -> None:
    """Any text of 1 to 256 characters."""
    response = await send(client, Idempotency_Key=key)
    if ok:
        assert response.json()["duplicate"] is False
        assert (await send(client, Idempotency_Key=key)).json()["duplicate"] is True
    else:
        check_problem(response, 400, "invalid_field")


async def test_a_key_that_was_used_for_something_else(client: httpx.AsyncClient) -> None:
    """409, as the drafts for that header have it."""
    await send(client, Idempotency_Key="k")
    response = await send(client, json.dumps({"message": "other"}).encode(), Idempotency_Key="k")

    check_problem(response, 409, "idempotency_conflict")


async def test_a_busy_session(client: httpx.AsyncClient) -> None:
    """409, in the words of the one that runs."""
    sent = (await send(client)).json()
    response = await send(client, b'{"message":"hello","busy_policy":"reject"}')

    assert sent["task_id"] in check_problem(response, 409, "session_busy")["detail"]


async def test_too_many_tasks(pod: StubPod, client: httpx.AsyncClient) -> None:
    """429, and when to try again."""
    pod.tasks.most = 1
    await send(client)
    response = await send(client)

    check_problem(response, 429, "too_many_tasks", "session_tasks")
    assert response.headers["retry-after"] == "5"
