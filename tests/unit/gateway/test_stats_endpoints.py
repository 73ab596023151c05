"""Statistics: who may see whose."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from backplane.keys import TIERS
from gateway.identity import OPERATOR, SCOPES
from tests.unit.gateway.web import StubPod, check_problem, client_of, with_tokens

SOCKETS, CHATS, DETAILS = "/ws/stats", "/api/chat/stats", "/health/detailed"


@pytest.fixture
def pod() -> StubPod:
    pod = with_tokens()
    pod.commands.replies = {
        ("SMEMBERS", pod.keys.members("pods")): {b"pod-1", b"pod-2"},
        ("SMEMBERS", pod.keys.members("routers")): {b"r-1"},
        ("GET", pod.keys.member("pods", "pod-1")): b'{"connections":99,"sends_accepted":99,"delivered":99}',
        ("GET", pod.keys.member("pods", "pod-2")): b'{"connections":4,"sends_accepted":2,"delivered":3}',
        ("GET", pod.keys.member("routers", "r-1")): b'{"lists":2}',
        ("HGETALL", pod.keys.tenant_connections("acme")): {b"pod-2": b"3", b"dead": b"7"},
        ("HGETALL", pod.keys.tenant_connections("other")): {},
    }
    return pod


@pytest.fixture
async def client(pod: StubPod) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pod) as client:
        yield client


@pytest.mark.parametrize("path", [SOCKETS, f"{SOCKETS}?tenant_id=acme", CHATS, DETAILS])
async def test_the_scope_is_needed(pod: StubPod, client: httpx.AsyncClient, path: str) -> None:
    """Neither an administrator nor an operator sees them without it, and nobody without a token."""
    others = [scope for scope in SCOPES if scope != "stats"]
    for who in ("acme", OPERATOR):
        check_problem(await client.get(path, headers=pod.bearer(*others, tenant=who)), 403, "scope_missing")
    check_problem(await client.get(path), 401, "token_missing")
    check_problem(await client.get(path, headers={"Authorization": "Bearer a.b.c"}), 401, "token_invalid")

    assert pod.commands.called == []


@pytest.mark.parametrize("query", ["", "?tenant_id=acme"])
async def test_a_tenant_sees_its_own(pod: StubPod, client: httpx.AsyncClient, query: str) -> None:
    """How many it has, by pod, and nothing of anybody else; pods that are dead do not count."""
    answer = (await client.get(SOCKETS + query, headers=pod.bearer("stats"))).json()

    assert answer == {
        "tenant_id": "acme",
        "connections": 3,
        "pods": [{"pod_id": "pod-1", "connections": 0}, {"pod_id": "pod-2", "connections": 3}],
        "answered_by": "pod-1",
    }


async def test_a_tenant_does_not_see_others(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Nor what the service has as a whole."""
    headers = pod.bearer("stats")
    check_problem(await client.get(f"{SOCKETS}?tenant_id=other", headers=headers), 403, "forbidden")
    check_problem(await client.get(CHATS, headers=headers), 403, "forbidden")
    check_problem(await client.get(f"{CHATS}?tenant_id=acme", headers=headers), 403, "forbidden")

    assert pod.commands.called == []


async def test_an_operator_sees_all(pod: StubPod, client: httpx.AsyncClient) -> None:
    """The whole service, or one tenant; the pod that answers as it is now."""
    headers = pod.bearer("stats", tenant=OPERATOR)
    answer = (await client.get(SOCKETS, headers=headers)).json()
    assert answer["connections"] == 3 + 4
    assert [(one["pod_id"], one["connections"]) for one in answer["pods"]] == [("pod-1", 3), ("pod-2", 4)]
    for name, count in (("acme", 3), ("other", 0)):
        answer = (await client.get(f"{SOCKETS}?tenant_id={name}", headers=headers)).json()
        assert (answer["tenant_id"], answer["connections"]) == (name, count)


async def test_an_operator_sees_what_was_sent(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Sends, deliveries, queues and routers."""
    answer = (await client.get(CHATS, headers=pod.bearer("stats", tenant=OPERATOR))).json()

    assert (answer["sends_accepted"], answer["messages_delivered"], answer["pods"]) == (7, 10, 2)
    assert [queue["tier"] for queue in answer["queues"]] == list(TIERS)
    assert answer["routers"] == [{"router_id": "r-1", "lists": 2}]


@pytest.mark.parametrize("path", [SOCKETS, f"{SOCKETS}?tenant_id=acme", CHATS, DETAILS])
async def test_without_tokens_everybody_may(path: str) -> None:
    """AUTH=none is for a developer's own machine."""
    pod = StubPod()
    pod.commands.replies = {"SMEMBERS": set(), "HGETALL": {}}
    async with client_of(pod) as client:
        assert (await client.get(path)).status_code == 200


async def test_details_with_the_scope(pod: StubPod, client: httpx.AsyncClient) -> None:
    """How the pod is."""
    answer = (await client.get(DETAILS, headers=pod.bearer("stats", tenant=OPERATOR))).json()

    assert answer["pod"]["pod_id"] == "pod-1"


@pytest.mark.parametrize("query", ["tenant_id=a:b", "tenant_id=", "tenant_id=*", "tenant_id=%7Bx%7D"])
@pytest.mark.parametrize("who", ["acme", OPERATOR])
async def test_statistics_of_no_tenant(pod: StubPod, client: httpx.AsyncClient, query: str, who: str) -> None:
    """What is no id gets into no key."""
    headers = pod.bearer("stats", tenant=who)

    check_problem(await client.get(f"{SOCKETS}?{query}", headers=headers), 400, "invalid_id")
    assert pod.commands.called == []


async def test_parameters_given_twice(pod: StubPod, client: httpx.AsyncClient) -> None:
    """A proxy may have checked the other one."""
    path = f"{SOCKETS}?tenant_id=acme&tenant_id=other"

    check_problem(await client.get(path, headers=pod.bearer("stats")), 400, "bad_request")
