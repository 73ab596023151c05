"""HTTP requests are counted by route; nothing that a client chooses becomes a time series."""

from __future__ import annotations

import pytest

from backplane.errors import QueueFull, RedisUnavailable
from gateway.errors import ClientError
from tests.unit.gateway.web import StubPod, client_of, send, with_tokens


def counted(pod: StubPod) -> dict[tuple[str, ...], float]:
    return {
        labels: member.value for labels, member in pod.metrics.http_requests.members.items() if member.value
    }


async def test_requests_are_counted_by_route_and_status() -> None:
    """Also those that were refused, and by the address as it was made, not as it came."""
    pod = StubPod()
    async with client_of(pod) as client:
        await send(client)
        await send(client, body=b"{}")
        await client.get("/api/chat/tasks/11111111-1111-4111-8111-111111111111?tenant_id=acme")
        await client.get("/readyz")

    assert counted(pod) == {
        ("/api/chat/send", "POST", "200"): 1,
        ("/api/chat/send", "POST", "422"): 1,
        ("/api/chat/tasks/{task_id}", "GET", "400"): 1,
        ("/readyz", "GET", "200"): 1,
    }
    assert sum(pod.metrics.http_duration.of("/api/chat/send").counts) == 2


async def test_addresses_and_methods_of_clients_make_no_series() -> None:
    """A scanner that asks for a thousand addresses with methods of its own."""
    pod = StubPod()
    async with client_of(pod) as client:
        for number in range(50):
            await client.request("GET", f"/wp-admin/{number}")
            await client.request(f"BREW{number}", "/readyz")

    assert set(counted(pod)) == {("other", "GET", "404"), ("/readyz", "other", "405")}


async def test_mistakes_are_counted() -> None:
    """What the application does not answer itself is a 500 all the same."""
    pod = StubPod()

    def fail() -> str | None:
        raise RuntimeError("on purpose")

    pod.health.problem = fail
    async with client_of(pod) as client:
        assert (await client.get("/readyz")).status_code == 500

    assert counted(pod) == {("/readyz", "GET", "500"): 1}


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(None, "accepted"), (QueueFull("full"), "failed"), (RedisUnavailable("away"), "failed")],
)
async def test_sends_are_counted_by_how_they_went(refusal: Exception | None, outcome: str) -> None:
    """By tier and by tenant; only those that were accepted are measured."""
    pod = StubPod()
    pod.queue.refusal = refusal
    async with client_of(pod) as client:
        await send(client)
        await send(client, body=b"")  # that is no message

    sends, tenants = pod.metrics._sends.members, pod.metrics._sends_by_tenant.members
    assert {labels: member.value for labels, member in sends.items() if member.value} == {
        ("free", outcome): 1
    }
    assert {labels: member.value for labels, member in tenants.items() if member.value} == {
        ("acme", outcome): 1
    }
    assert len(pod.metrics._accept.members) == (refusal is None)


async def test_a_failure_before_it_is_known_whose_message_it_is() -> None:
    """An identity provider that is away keeps messages from being taken: they count as failed, too."""
    pod = with_tokens()

    async def away(*_who: object) -> None:
        raise ClientError(503, "keys_unavailable", "the keys cannot be had", retry_after_s=1)

    pod.authenticator.identify = away  # type: ignore[assignment, method-assign]
    async with client_of(pod) as client:
        assert (await send(client)).status_code == 503
    sends = pod.metrics._sends.members
    assert {labels: m.value for labels, m in sends.items() if m.value} == {("unknown", "failed"): 1}


async def test_what_waits_for_others_is_not_in_the_queue_yet() -> None:
    """So how long it took to get there is not measured."""
    pod = StubPod()
    async with client_of(pod) as client:
        await send(client)
        answer = await send(client, body=b'{"message":"and then","busy_policy":"enqueue"}')
    assert answer.json()["deadline_at"] is None
    assert sum(pod.metrics._accept.of("free").counts) == 1


async def test_what_a_client_may_not_is_its_own_affair() -> None:
    """Such sends are no failures, which would call somebody out of bed."""
    pod = with_tokens()
    async with client_of(pod) as client:
        token = pod.bearer("listen")["Authorization"]
        assert (await send(client, authorization=token)).status_code == 403
    sends = pod.metrics._sends.members
    assert {labels: member.value for labels, member in sends.items() if member.value} == {
        ("free", "refused"): 1
    }
