"""A pod as its sockets see it, and clients of it, as far as their bytes go."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

from backplane.ownership import Owned, Ownership
from backplane.settings import Settings
from backplane.tracing import NO_TRACER
from gateway.access import AgentAccess
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.connection import Connection
from gateway.conversation import Conversation
from gateway.health import Health
from gateway.hub import Hub
from gateway.identity import Grant
from gateway.listener import State
from gateway.open_connections import OpenConnections
from gateway.opening import Opening
from gateway.origins import Origins
from gateway.send_trace import SendTraces
from gateway.sender import Sender
from gateway.tasks import TaskDesk
from gateway.tokens import issue_token
from gateway.topics import Topics
from gateway.websocket_endpoint import WebSocketEndpoint
from tests.unit.gateway.fakes import (
    SESSION,
    FakeCounts,
    FakeLimiter,
    FakeLogger,
    FakeQueue,
    FakeSessionLog,
    FakeStore,
    FakeTasks,
    FakeTransport,
    close_codes,
    masked,
    messages,
    settle,
)

TEXT, BINARY, CLOSE = 1, 2, 8
SECRET = "a-secret-of-at-least-thirty-two-bytes"
WHO = "tenant_id=acme&tenant_tier=free"


class StubOwnership:
    """Who owns what, in memory."""

    def __init__(self) -> None:
        self.owned: dict[str, Owned] = {}
        self.on_rewritten: Callable[[], object] = list

    def own(self, owned: Owned) -> None:
        self.owned[owned.connection_id] = owned

    def disown(self, connection_id: str) -> None:
        self.owned.pop(connection_id, None)

    async def rewrite(self, everything: Iterable[Owned]) -> None:
        self.owned.clear()
        for owned in everything:
            self.own(owned)
            self.on_rewritten()


class Pod:
    """Everything that sockets need."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**{"auth": "none", **settings})
        self.log = FakeSessionLog()
        self.logger = FakeLogger()
        self.queue, self.tasks = FakeQueue(), FakeTasks(self.log)
        self.now = 0.0  # of the limits
        self.ownership = StubOwnership()
        self.health = SimpleNamespace(draining=False, deaf_to=lambda _session: False)
        keys = self.settings.keys()
        logger = self.logger.as_logger()
        self.hub = Hub(FakeStore().as_store(), self.log.as_log(), logger, lambda _channel, _payload: None)
        self.limiter, self.counts = FakeLimiter(), FakeCounts()
        self.refused = Counter[str]()
        self.revoked: Callable[[Grant], bool] = lambda _grant: False
        authenticator = Authenticator(self.settings, self._is_revoked, logger)
        self.desk = TaskDesk(self.tasks.as_tasks(), self.queue.as_queue(), self.log.as_log(), logger)
        self.sender = Sender(
            self.settings,
            keys,
            self.log.as_log(),
            self.queue.as_queue(),
            self.tasks.as_tasks(),
            self.desk,
            self.limiter.as_limiter(),
            AgentAccess(self.settings, logger),
            SendTraces(self.settings, NO_TRACER, logger),
        )
        self.topics = Topics(
            FakeStore().as_store(),
            keys,
            lambda: self.sockets.wheel.connections,
            self.settings.topics_per_connection,
            asyncio.ensure_future,
            logger,
        )
        self.conversation = Conversation(
            self.settings, authenticator, self.sender, self.desk, self.topics, self.refused, logger
        )
        self.admission = Admission(
            self.settings, self.counts.as_counts(), self.limiter.as_limiter(), lambda: self.now
        )
        self.sockets = OpenConnections(
            self.settings,
            self.hub,
            self.admission,
            cast("Ownership", self.ownership),
            self.topics.gone,
            self.refused,
            logger,
        )
        self.opening = Opening(
            self.settings,
            authenticator,
            self.admission,
            self.log.as_log(),
            cast("Health", self.health),
            self.sockets,
        )
        origins = Origins(self.settings.allowed_origins, local=self.settings.auth == "none")
        self.endpoint = WebSocketEndpoint(
            self.opening, self.sockets, self.admission, origins, self.conversation, logger
        )

    def _is_revoked(self, grant: Grant) -> bool:
        return self.revoked(grant)

    def token(self, **more: Any) -> str:
        """A token for the tenant acme, or for what is given."""
        said: dict[str, Any] = {"tenant_id": "acme", "tier": "free", **more}
        return issue_token(self.settings, time.time(), **said)

    def asks(self, target: str, peer: str = "127.0.0.1", **headers: str) -> Client:
        """A client that has sent its request."""
        client = Client(self, peer)
        client.ask(target, **headers)
        return client

    async def open(self, query: str = WHO, session: str = "s-1", **headers: str) -> Client:
        """A client whose socket is open."""
        client = self.asks(f"/ws/{session}?{query}", **headers)
        await settle()
        assert client.connection.state == State.OPEN, client.transport.data
        return client

    def say(self, count: int = 1) -> None:
        """Messages of the session's agent."""
        batch = self.log.append(count, SESSION)
        payload = b"\n".join([f"{batch.epoch}:{batch.first}".encode(), *batch.entries])
        self.hub.on_push([b"message", SESSION.encode(), payload])


class Client:
    """A client, as far as its bytes go."""

    def __init__(self, pod: Pod, peer: str = "127.0.0.1") -> None:
        self.transport = FakeTransport(peer)
        self.connection = Connection(pod.endpoint)
        self.connection.connection_made(self.transport)

    def ask(self, target: str, **headers: str) -> None:
        fields = {
            "Host": "pod.test",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.connection.data_received("\r\n".join([*lines, "", ""]).encode())

    @property
    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and what follows of the answer to the upgrade request."""
        head, _, rest = self.transport.data.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        return int(line.split()[1]), headers, rest

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of an upgrade that was refused."""
        status, headers, body = self.answer
        assert headers["content-type"] == "application/problem+json"
        assert self.transport.closing
        document = json.loads(body)
        assert document["status"] == status
        return status, document["error_code"]

    @property
    def messages(self) -> list[dict[str, Any]]:
        assert self.answer[0] == 101, self.answer
        return messages(self.answer[2])

    @property
    def close_codes(self) -> list[int]:
        return close_codes(self.answer[2])

    @property
    def told(self) -> tuple[str, list[int]]:
        """The code of the error, and the close codes, of a socket that was refused over itself."""
        [message] = self.messages
        assert message["type"] == "error"
        return message["data"]["error_code"], self.close_codes

    def say(self, **message: Any) -> None:
        self.connection.data_received(masked(TEXT, json.dumps(message).encode()))

    def close(self, code: int = 1000) -> None:
        self.connection.data_received(masked(CLOSE, code.to_bytes(2, "big")))

    def lose(self) -> None:
        self.connection.connection_lost(None)
