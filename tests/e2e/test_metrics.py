"""What Prometheus is told agrees with what clients were sent, and does not grow with who they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
import redis

from tests.support.agent import Agent
from tests.support.many_tenants import look, use
from tests.support.processes import Cluster, free_port, wait_for
from tests.support.scrape import Scrape, scrape, together
from tests.support.talk import close_code, open_socket, receive, receive_logged

LIST = "orchestrator:acme:callbacks"
STAGES = (
    "orchestrator_accept_seconds",
    "orchestrator_task_first_word_seconds",
    "orchestrator_callback_wait_seconds",
    "orchestrator_task_duration_seconds",
    "orchestrator_delivery_seconds",
    "orchestrator_acknowledgement_seconds",
)
"""A message's way: accepted, queued, first word, callback pushed, appended, written, acknowledged."""


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port = free_port()
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, pods=2, unlimited=True, ROUTER_PORT=str(port)) as running:
        running.router_url = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        yield running


def addresses(cluster: Cluster) -> dict[str, str]:
    pods = {f"pod-{number}": pod.url for number, pod in enumerate(cluster.pods)}
    return {**pods, "router": cluster.router_url}  # type: ignore[attr-defined]


def told(cluster: Cluster) -> Scrape:
    return together(scrape(url) for url in addresses(cluster).values())


def test_a_messages_way_in_numbers(cluster: Cluster) -> None:
    """Every stage of it is measured, and what is counted is what clients saw."""
    rounds = 5
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as aes:
        for pod in cluster.pods:
            with open_socket(pod, f"s-{pod.port}", stream="1") as socket:
                assert receive(socket)["data"]["resume"]["status"] == "fresh"
                for _ in range(rounds):
                    socket.send(json.dumps({"type": "chat", "message": "hello", "ref": "r"}))
                    while (message := receive(socket))["data"].get("ref") != "r":
                        pass
                    agent = Agent(aes, f"s-{pod.port}", message["data"]["task_id"])
                    agent.say("hel")
                    agent.say("lo")
                    agent.finish()
                    last = receive_logged(socket, 2)[-1]["metadata"]["seq"]
                    socket.send(json.dumps({"type": "ack", "seq": last}))
                assert together([scrape(pod.url)]).total("orchestrator_connections", kind="socket") == 1
        aes.lpush(LIST, "not JSON")
        sends = 2 * rounds
        wait_for(
            lambda: told(cluster).total("orchestrator_dead_letters_total", reason="not_json") == 1,
            "it is buried",
        )

    seen = told(cluster)
    assert seen.total("orchestrator_sends_total", tenant_tier="free", outcome="accepted") == sends
    assert seen.total("orchestrator_sends_total") == sends
    assert seen.total("orchestrator_tasks_ended_total", tenant_tier="free", outcome="completed") == sends
    assert seen.total("orchestrator_tenant_tasks_ended_total", tenant_id="acme") == sends
    assert seen.total("orchestrator_agent_tasks_ended_total", agent_id="agent-1") == sends
    assert seen.total("orchestrator_callbacks_total", result="appended") == sends
    assert seen.total("orchestrator_callbacks_total", result="streamed") == 2 * sends
    assert seen.total("orchestrator_messages_delivered_total") == 2 * sends  # question and answer
    assert seen.total("orchestrator_connections_opened_total") == 2
    assert seen.total("orchestrator_connections") == 0
    assert seen.total("orchestrator_connections_closed_total", code="1000") == 2
    assert seen.total("orchestrator_resumes_total", status="fresh") == 2
    for stage in STAGES:
        assert seen.total(f"{stage}_count") > 0, stage
    assert seen.total("orchestrator_task_first_word_seconds_count") == sends
    assert seen.total("orchestrator_ready") == 3
    assert seen.total("orchestrator_redis_round_trip_seconds_count", path="push") > 0
    assert seen.total("orchestrator_event_loop_lag_seconds_count") > 0


def test_codes_of_clients_make_no_series(cluster: Cluster) -> None:
    """A client may close with any of a thousand codes."""
    pod = cluster.pods[0]
    for code in (1000, 3001, 3002, 4999):
        with open_socket(pod, "s-1") as socket:
            receive(socket)
            socket.close(code)
            assert close_code(socket) == code
    assert scrape(pod.url).values("orchestrator_connections_closed_total", "code") == {"1000", "other"}


def test_series_do_not_grow_with_tenants(cluster: Cluster) -> None:
    """Once labels are dealt out, more tenants are `other`; `many_tenants` does it with thousands."""
    asyncio.run(use(cluster, range(100)))
    before = look(addresses(cluster))
    asyncio.run(use(cluster, range(100, 300)))

    assert look(addresses(cluster)) == before
    assert before["router"].tenants == before["router"].agents == 21
    assert told(cluster).total("orchestrator_metrics_folded_total", label="tenant_id") > 200
