"""Events: to a topic's subscribers, a tenant, a tier and a session, on all pods, and each socket once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from websockets.sync.client import ClientConnection

from tests.support.processes import Cluster, post
from tests.support.talk import Message, open_socket, receive

LIST = "orchestrator:acme:callbacks"


@pytest.fixture
def crowd(cluster: Cluster) -> Iterator[dict[str, ClientConnection]]:
    """Sockets of two tenants and tiers on both pods, by name."""
    with ExitStack() as opened:
        found = {}
        for number, pod in enumerate(cluster.pods):
            for tenant, tier in (("acme", "free"), ("acme", "advance"), ("other", "free")):
                name = f"{tenant}-{tier}-{number}"
                socket = open_socket(pod, f"s-{name}", tenant_id=tenant, tenant_tier=tier)
                found[name] = opened.enter_context(socket)
                assert receive(found[name])["type"] == "connection_ack"
        yield found


def say(socket: ClientConnection, **message: Any) -> Message:
    """Say something, and return the answer."""
    socket.send(json.dumps({**message, "ref": "asked"}))
    while (answer := receive(socket))["data"].get("ref") != "asked":
        pass
    return answer


def broadcast(cluster: Cluster, to: Any, payload: Any, pod: int = 0, tenant: str = "acme") -> tuple[int, Any]:
    url = f"{cluster.pods[pod].url}/api/broadcast"
    return post(url, {"to": to, "payload": payload}, headers={"X-Tenant-ID": tenant})


def told(crowd: dict[str, ClientConnection]) -> dict[str, list[tuple[str, Any]]]:
    """The events that each socket got, up to what `finish` publishes behind them."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, socket in crowd.items():
        events = []
        while True:
            message = receive(socket)
            if message["type"] == "event":
                if message["data"]["payload"] == "that is all":
                    break
                events.append((message["data"]["topic"], message["data"]["payload"]))
        found[name] = events
    return {name: events for name, events in found.items() if events}


def finish(cluster: Cluster) -> None:
    for tenant in ("acme", "other"):
        assert broadcast(cluster, {"tenant": True}, "that is all", tenant=tenant)[0] == 200


def test_a_topics_subscribers(cluster: Cluster, aes: redis.Redis, crowd: dict[str, ClientConnection]) -> None:
    """From other backends and from the AES; each socket once, and nobody else; no more when it is enough."""
    for name in ("acme-free-0", "acme-advance-1", "other-free-1"):
        answer = say(crowd[name], type="subscribe", topics=["orders/7", "agent:sales", "orders/7"])
        assert (answer["type"], answer["data"]["topics"]) == ("subscribed", ["agent:sales", "orders/7"])
    broadcast(cluster, {"topic": "orders/7"}, {"state": "shipped"}, pod=1)
    broadcast(cluster, {"agent_id": "sales"}, 1)
    first = [("orders/7", {"state": "shipped"}), ("agent:sales", 1)]
    events = [receive(crowd["acme-free-0"])["data"] for _ in first]
    assert [(event["topic"], event["payload"]) for event in events] == first
    answer = say(crowd["acme-free-0"], type="unsubscribe", topics=["agent:sales"])
    assert (answer["type"], answer["data"]["topics"]) == ("unsubscribed", ["orders/7"])
    broadcast(cluster, {"agent_id": "sales"}, 2)
    finish(cluster)
    assert told(crowd) == {"acme-advance-1": [*first, ("agent:sales", 2)]}
    data = {"topic": "orders/7", "payload": "from the AES"}
    aes.lpush(LIST, json.dumps({"action_type": "execution.event", "tenant_id": "acme", "data": data}))
    for name in ("acme-free-0", "acme-advance-1"):
        assert receive(crowd[name])["data"]["payload"] == "from the AES"


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ({"tenant": True}, {"acme-free-0", "acme-free-1", "acme-advance-0", "acme-advance-1"}),
        ({"tier": "free"}, {"acme-free-0", "acme-free-1"}),
        ({"session_id": "s-acme-free-1"}, {"acme-free-1"}),
    ],
    ids=["tenant", "tier", "session"],
)
def test_who_is_told(cluster: Cluster, crowd: dict[str, ClientConnection], to: Any, names: set[str]) -> None:
    """All of them, on every pod, once."""
    assert broadcast(cluster, to, ["hello", 7])[0] == 200
    finish(cluster)
    found = told(crowd)
    assert set(found) == names
    assert Counter(len(events) for events in found.values()) == {1: len(names)}
    assert all(events[0][1] == ["hello", 7] for events in found.values())


def test_what_a_session_is_told_is_in_its_log(cluster: Cluster, aes: redis.Redis) -> None:
    """Who was away gets it when he comes."""
    assert broadcast(cluster, {"session_id": "away"}, "come back")[0] == 200
    aes.lpush(
        LIST, json.dumps({"action_type": "execution.event", "session_id": "away", "data": {"payload": [1]}})
    )
    with open_socket(cluster.pods[1], "away") as socket:
        receive(socket)
        messages = [receive(socket) for _ in range(2)]
    assert [message["data"] for message in messages] == [
        {"topic": "session", "payload": "come back"},
        {"topic": "session", "payload": [1]},
    ]
    assert [message["metadata"]["seq"] for message in messages] == [1, 2]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"to": {}, "payload": 1}, "invalid_field"),
        ({"to": {"tenant": True, "tier": "free"}, "payload": 1}, "invalid_field"),
        ({"to": {"tier": "gold"}, "payload": 1}, "unknown_tier"),
        ({"to": {"topic": "a b"}, "payload": 1}, "invalid_field"),
        ({"to": {"session_id": "a/b"}, "payload": 1}, "invalid_id"),
        ({"to": {"everybody": True}, "payload": 1}, "invalid_field"),
        ({"to": {"tenant": True}}, "invalid_field"),
    ],
)
def test_bad_broadcasts(cluster: Cluster, body: Any, code: str) -> None:
    """Each is told what is wrong with it."""
    url = f"{cluster.pods[0].url}/api/broadcast"
    assert post(url, body, headers={"X-Tenant-ID": "acme"})[1]["error_code"] == code


@pytest.mark.parametrize("topic", ["*", "a b", "", "tenant:all", "agent:a/b", "task:no-such"])
def test_bad_topics(cluster: Cluster, topic: str) -> None:
    """There are no wildcards."""
    with open_socket(cluster.pods[0], "topics") as socket:
        receive(socket)
        answer = say(socket, type="subscribe", topics=[topic])
        assert answer["type"] == "error"
        assert say(socket, type="subscribe", topics=["fine"])["data"]["topics"] == ["fine"]
