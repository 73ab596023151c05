"""Whom a token may tell of an event: ``POST /api/broadcast``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.gateway.web import StubPod, check_problem, client_of, with_tokens

LESS: dict[str, Any] = {"sessions": ["s-1", "web-*"], "agents": ["sales"]}


async def told(_self: Any, *_what: Any) -> None:
    """Nobody is there."""


@pytest.fixture
def pod() -> StubPod:
    pod = with_tokens()
    pod.events = SimpleNamespace(publish=told, announce=told, log=told)  # type: ignore[attr-defined]
    return pod


@pytest.mark.parametrize(
    ("to", "allowed"),
    [
        ({"session_id": "s-1"}, True),
        ({"session_id": "web-7"}, True),
        ({"session_id": "s-2"}, False),
        ({"session_id": "web"}, False),
        ({"agent_id": "sales"}, True),
        ({"agent_id": "support"}, False),
        ({"topic": "agent:support"}, False),
        ({"topic": "orders/7"}, True),
    ],
    ids=str,
)
async def test_a_token_for_some(pod: StubPod, to: dict[str, str], allowed: bool) -> None:
    """Sessions and agents that it does not name are told nothing by it."""
    async with client_of(pod) as client:
        said = {"to": to, "payload": 1}
        response = await client.post("/api/broadcast", json=said, headers=pod.bearer("broadcast", **LESS))
    if allowed:
        assert response.json() == {"success": True}
    else:
        check_problem(response, 403, "forbidden")
