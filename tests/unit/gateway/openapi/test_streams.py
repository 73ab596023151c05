"""Event streams are opened and refused as the document says; through uvicorn's own parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest

from backplane.connection_counts import Full
from gateway.identity import SCOPES
from tests.unit.gateway.fakes import settle
from tests.unit.gateway.openapi.judge import complaints, find, with_jwt, without_tokens
from tests.unit.gateway.sockets import SECRET, Pod
from tests.unit.gateway.test_event_framing import unchunked
from tests.unit.gateway.test_event_stream import WHO, Server

EVENTS = "/api/chat/sessions/s-1/events"
RESUMED = f"{EVENTS}/c-1/stream"
AGENT = f"{WHO}&agent_id=sales"
AG_UI = {"threadId": "s-1", "runId": "r-1", "messages": [{"id": "m-1", "role": "user", "content": "hello"}]}
AI_SDK = {"messages": [{"id": "m-1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]}
WORDLESS = {"messages": [{"id": "m-1", "role": "user", "parts": []}]}


class Case(NamedTuple):
    """A request; ``says`` is the status or the error code of its answer."""

    target: str
    says: int | str
    body: Any = None
    before: Callable[[Pod], object] = lambda _pod: None

    def __str__(self) -> str:
        return f"{'GET' if self.body is None else 'POST'} {self.target} {self.says}"


def full(pod: Pod) -> None:
    pod.counts.full = Full("session", 50)


def no_room(pod: Pod) -> None:
    pod.admission.most = 0


def drains(pod: Pod) -> None:
    pod.health.draining = True


CASES = [
    Case(f"{EVENTS}?{WHO}", 200),
    Case(f"{EVENTS}?{WHO}&stream=1&have=t:1:2:3", 200),
    Case(f"{EVENTS}?{WHO}&format=ag-ui", 200),
    Case(f"{EVENTS}?{WHO}&format=ai-sdk", 204),
    Case(f"{RESUMED}?{WHO}", 204),
    Case(f"{EVENTS}?{AGENT}&format=ag-ui", 200, AG_UI),
    Case(f"{EVENTS}?{AGENT}&format=ai-sdk&v=7", 200, AI_SDK),
    Case(f"{EVENTS}?", "missing_id"),
    Case(f"{EVENTS}?tenant_id=acme", "unknown_tier"),
    Case(f"{EVENTS}?{WHO}&user_id=a%20b", "invalid_id"),
    Case(f"{EVENTS}?{WHO}&stream=1&have=x", "invalid_field"),
    Case(f"{EVENTS}?{WHO}&cursor=what", "invalid_cursor"),
    Case(f"{EVENTS}?{WHO}&cursor=a:1&last_event_id=a:2", "bad_request"),
    Case(f"{EVENTS}?{WHO}&format=ag-ui&task_id=none", "unknown_task"),
    Case(f"{RESUMED}?{WHO}&task_id=none", "unknown_task"),
    Case(f"{EVENTS}?{WHO}", "too_many_connections", before=full),
    Case(f"{EVENTS}?{WHO}", "pod_full", before=no_room),
    Case(f"{EVENTS}?{WHO}", "draining", before=drains),
    Case(f"{EVENTS}?{WHO}", "method_not_allowed", {}),
    Case(f"{EVENTS}?{WHO}&format=ag-ui", "missing_id", AG_UI),
    Case(f"{EVENTS}?{AGENT}&format=ag-ui", "invalid_field", {}),
    Case(f"{EVENTS}?{AGENT}&format=ai-sdk", "invalid_field", WORDLESS),
]


async def ask(pod: Pod, case: Case) -> httpx.Response:
    """Carry a case out; of a stream, what came at once."""
    method = "GET" if case.body is None else "POST"
    body = b"" if case.body is None else json.dumps(case.body).encode()
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    protocol, transport = Server(pod).connect()
    protocol.data_received(
        f"{method} {case.target} HTTP/1.1\r\nHost: pod.test\r\n{length}\r\n".encode() + body
    )
    await settle()
    head, _, rest = transport.data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
    is_stream = ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in headers]
    kept = [one for one in headers if one[0].lower() != "transfer-encoding"]
    content = unchunked(rest)[0] if is_stream else rest
    return httpx.Response(int(lines[0].split()[1]), headers=kept, content=content)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_answers(case: Case) -> None:
    """Status, headers, media type and problem are told."""
    pod = Pod()
    case.before(pod)
    answer = await ask(pod, case)

    if isinstance(case.says, int):
        assert answer.status_code == case.says, answer.text
    else:
        assert answer.json()["error_code"] == case.says
    assert complaints(without_tokens(), "GET" if case.body is None else "POST", case.target, answer) == []


async def test_a_task_that_runs_is_followed() -> None:
    """What a page that was loaded again asks for: the stream of the task that it had begun."""
    pod = Pod()
    await ask(pod, Case(f"{EVENTS}?{AGENT}&format=ai-sdk", 200, AI_SDK))
    for target in (f"{RESUMED}?{WHO}", f"{EVENTS}?{WHO}&format=ai-sdk"):
        answer = await ask(pod, Case(target, 200))
        assert answer.status_code == 200
        assert complaints(without_tokens(), "GET", target, answer) == []


@pytest.mark.parametrize(
    "case",
    [
        Case(f"{EVENTS}?agent_id=sales&format=ai-sdk&task_id=t", "unknown_task"),
        Case(f"{RESUMED}?task_id=t", "unknown_task"),
        Case(f"{EVENTS}?agent_id=sales&format=ai-sdk", 200, AI_SDK),
    ],
    ids=str,
)
async def test_scopes_and_tokens(case: Case) -> None:
    """Those that are told are enough, and each is needed; the token may stand in the query."""
    operation = find(with_jwt(), "GET" if case.body is None else "POST", case.target)[1]
    [scopes, in_query] = [next(iter(one.values())) for one in operation["security"]]
    assert scopes == in_query
    for given in (scopes, *([one for one in SCOPES if one != scope] for scope in scopes)):
        pod = Pod(auth="jwt", jwt_secret=SECRET)
        answer = await ask(pod, case._replace(target=f"{case.target}&token={pod.token(scopes=given)}"))
        says = answer.status_code if answer.status_code == 200 else answer.json()["error_code"]
        assert says == (case.says if given == scopes else "scope_missing"), given
