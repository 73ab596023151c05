"""The access log: what is told of a request, and what must not be."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.gateway.web import BODY, HEADERS, StubPod, client_of, send

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "s3cret"
Logs = list[MutableMapping[str, Any]]


@pytest.fixture
def logs() -> Iterator[Logs]:
    """The access log, as it is written."""
    with capture_logs() as found:
        yield found


@pytest.fixture
def pod() -> StubPod:
    return StubPod(access_log=True)


async def test_it_is_off_unless_asked_for(logs: Logs) -> None:
    async with client_of(StubPod()) as client:
        await client.get("/livez")
    assert not logs


async def test_what_is_told(pod: StubPod, logs: Logs) -> None:
    """Method, route, status, time, and the ids that are ids."""
    async with client_of(pod) as client:
        await send(client, traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01")
        await client.get("/api/chat/tasks/t-1", headers={"X-Tenant-ID": "acme", "X-Session-ID": "no id"})
    sent, asked = logs
    assert {name: value for name, value in sent.items() if name != "duration_ms"} == {
        "event": "http_request", "log_level": "info", "process": "pod", "pod_id": pod.id, "method": "POST",
        "route": "/api/chat/send", "status": 200, "tenant_id": HEADERS["X-Tenant-ID"],
        "session_id": HEADERS["X-Session-ID"], "trace_id": TRACE_ID,
    }  # fmt: skip
    assert 0 < sent["duration_ms"] < 60_000
    assert (asked["route"], asked["task_id"]) == ("/api/chat/tasks/{task_id}", "t-1")
    assert (asked["tenant_id"], "session_id" in asked) == ("acme", False)


@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", f"/nothing/{SECRET}", 404, None),
        (SECRET.upper(), "/livez", 405, "/livez"),
        ("GET", f"/livez?token={SECRET}", 200, "/livez"),
        ("GET", f"/api/chat/tasks/%22{SECRET}%22", 400, "/api/chat/tasks/{task_id}"),
    ],
)
async def test_what_is_not_told(
    pod: StubPod, logs: Logs, method: str, path: str, status: int, route: str | None
) -> None:
    """Nothing that a client has made up."""
    made_up = {"Authorization": f"Bearer {SECRET}", "X-Tenant-ID": f"{SECRET}/x"}
    async with client_of(pod) as client:
        await client.request(method, path, headers=made_up)
    [event] = logs
    assert (event["status"], event["route"]) == (status, route)
    assert SECRET not in json.dumps(event).lower()


async def test_a_mistake_of_ours(pod: StubPod, logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a 500, as the client sees it."""

    async def mistaken(*_args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pod.sender, "send", mistaken)
    async with client_of(pod) as client:
        response = await client.post("/api/chat/send", content=BODY, headers=HEADERS)
    assert response.status_code == 500
    assert [event["status"] for event in logs if event["event"] == "http_request"] == [500]
