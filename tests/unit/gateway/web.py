"""A pod as its HTTP application sees it, and a client of that application."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import httpx
from starlette.requests import Request
from starlette.responses import Response

from backplane.log_level import LevelSwitch
from backplane.revocations import Revocation
from backplane.settings import Settings
from backplane.tracing import NO_TRACER
from gateway.access import AgentAccess
from gateway.app import build_admin_app, build_app
from gateway.auth import Authenticator
from gateway.errors import ERROR_CODES, ClientError
from gateway.http import bearer_token
from gateway.metrics import PodMetrics
from gateway.origins import Origins
from gateway.pod import Pod
from gateway.send_trace import SendTraces
from gateway.sender import Sender
from gateway.tasks import TaskDesk
from gateway.tokens import issue_token
from tests.unit.gateway.fakes import FakeLimiter, FakeLogger, FakeQueue, FakeSessionLog, FakeStore, FakeTasks

LIMIT = 2_000
SECRET = "a-secret-of-at-least-thirty-two-bytes"
HEADERS = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Session-ID": "s-1", "X-Agent-ID": "sales"}
BODY = b'{"message":"hello"}'
SUMMARY = {"connections": 3, "sends_accepted": 5, "delivered": 7}


class StubRevocations:
    """Revocations, in memory."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], Revocation] = {}
        self.refusal: Exception | None = None

    async def revoke(self, revocation: Revocation, _now: float) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.entries[revocation.kind, revocation.tenant_id, revocation.name] = revocation

    async def lift(self, kind: str, tenant_id: str, name: str, _now: float) -> bool:
        if self.refusal is not None:
            raise self.refusal
        return self.entries.pop((kind, tenant_id, name), None) is not None

    async def everything(self, tenant_id: str | None = None) -> list[Revocation]:
        if self.refusal is not None:
            raise self.refusal
        return [one for one in self.entries.values() if tenant_id in (None, one.tenant_id)]


class StubPod:
    """What the application sees of a pod."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**{"auth": "none", "message_max_bytes": LIMIT, **settings})
        self.id = "pod-1"
        self.metrics = PodMetrics(self.settings)
        self.keys = self.settings.keys()
        self.authenticator = Authenticator(self.settings)
        self.redis_shown = "redis.test:6379/0"
        self.commands, self.feed = FakeStore(), FakeStore()
        self.commands.replies = {"SMEMBERS": {b"r-1"}, "GET": b'{"lists":2}'}
        self.log = FakeSessionLog()
        self.session_log = self.log.as_log()
        self.queue, self.tasks = FakeQueue(), FakeTasks(self.log)
        self.logger = FakeLogger()
        self.level = LevelSwitch("info", self.logger.as_logger())
        self.desk = TaskDesk(
            self.tasks.as_tasks(), self.queue.as_queue(), self.session_log, self.logger.as_logger()
        )
        self.limiter = FakeLimiter()
        self.revocations = StubRevocations()
        self.event_streams = SimpleNamespace(open=self._open_events)
        self.enforcement = SimpleNamespace(revocations=self.revocations)
        self.origins = Origins(self.settings.allowed_origins, local=self.settings.auth == "none")
        self.refused = Counter[str]()
        self.sender = Sender(
            self.settings,
            self.keys,
            self.log.as_log(),
            self.queue.as_queue(),
            self.tasks.as_tasks(),
            self.desk,
            self.limiter.as_limiter(),
            AgentAccess(self.settings, self.logger.as_logger()),
            SendTraces(self.settings, NO_TRACER, self.logger.as_logger()),
            self.metrics,
        )
        self.health = SimpleNamespace(
            problem=lambda: self.problem,
            impairment=lambda: self.impairment,
            probes=SimpleNamespace(round_trip_s=0.0015),
        )
        self.problem: str | None = None
        self.impairment: str | None = None

    def summary(self) -> dict[str, Any]:
        return dict(SUMMARY)

    async def _open_events(self, request: Request) -> Response:
        """As far as it goes without a connection."""
        await self.authenticator.grant(bearer_token(request))
        raise ClientError(400, "bad_request", "there is no connection here")

    def bearer(self, *scopes: str, tenant: str = "acme", **more: Any) -> dict[str, str]:
        """The header of a token with these scopes."""
        said = {"tenant_id": tenant, "tier": "free", "scopes": scopes, **more}
        return {"Authorization": f"Bearer {issue_token(self.settings, time.time(), **said)}"}

    def as_pod(self) -> Pod:
        return cast("Pod", self)


def with_tokens(**settings: Any) -> StubPod:
    """A pod whose clients need tokens."""
    return StubPod(**{"auth": "jwt", "jwt_secret": SECRET, **settings})


def client_of(pod: object, *, admin: bool = False) -> httpx.AsyncClient:
    """A client of the pod, at its port for everybody or at ADMIN_PORT."""
    app = (build_admin_app if admin else build_app)(cast("Pod", pod))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def send(
    client: httpx.AsyncClient, body: bytes = BODY, **changed: str | bytes | None
) -> httpx.Response:
    """A send; ``changed`` replaces a header, or leaves it out with None."""
    changes = {name.replace("_", "-").lower(): value for name, value in changed.items()}
    headers = {name.lower(): value for name, value in HEADERS.items()}
    kept = {name: value for name, value in {**headers, **changes}.items() if value is not None}
    return await client.post("/api/chat/send", content=body, headers=cast("dict[str, str]", kept))


def check_problem(
    response: httpx.Response, status: int, code: str, limit: str | None = None
) -> dict[str, Any]:
    """A problem document of RFC 9457 with our code, and nothing of our inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert set(document) - {"limit"} == {"type", "title", "status", "detail", "error_code"}
    assert document.get("limit") == limit
    assert (document["status"], document["error_code"]) == (status, code)
    assert code in ERROR_CODES
    assert "Traceback" not in response.text
    return document
