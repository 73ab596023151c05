"""Store and forward, resume, several sockets of one session, and what pub/sub lost."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.accounting import callback
from tests.support.processes import Cluster, Pod, get, wait_for
from tests.support.talk import close_code, open_socket, receive, receive_logged, silent

LIST = "orchestrator:acme:callbacks"


def push(aes: redis.Redis, session_id: str, first: int, count: int) -> list[str]:
    """Push callbacks ``first``…; returns their task ids."""
    tasks = [f"{session_id}.{n}" for n in range(first, first + count)]
    aes.lpush(LIST, *[callback("acme", session_id, task) for task in tasks])
    return tasks


def moved(aes: redis.Redis) -> bool:
    """Whether the router has taken everything from the list."""
    return aes.llen(LIST) == 0


def test_store_and_forward(cluster: Cluster, aes: redis.Redis) -> None:
    """20 callbacks to a session without a socket: the first client gets all in order, the next none twice."""
    tasks = push(aes, "offline", 0, 20)
    wait_for(lambda: moved(aes), "the list is empty")
    with open_socket(cluster.pods[0], "offline") as socket:
        resume = receive(socket)["data"]["resume"]
        assert (resume["status"], resume["from"], resume["to"]) == ("replayed", 0, 20)
        messages = receive_logged(socket, 20)
    assert [message["task_id"] for message in messages] == tasks
    assert [message["metadata"]["seq"] for message in messages] == list(range(1, 21))
    with open_socket(cluster.pods[1], "offline") as socket:
        assert receive(socket)["data"]["resume"]["status"] == "fresh"
        assert silent(socket)
    print(f"\nstored 20, delivered {len(messages)} in order, on the next connect 0 again")


def test_live_messages_count_as_sent(cluster: Cluster, aes: redis.Redis) -> None:
    """What came live is not forwarded again to a client without a cursor that said goodbye."""
    with open_socket(cluster.pods[0], "live") as socket:
        receive(socket)
        push(aes, "live", 0, 5)
        receive_logged(socket, 5)
    with open_socket(cluster.pods[1], "live") as socket:
        assert receive(socket)["data"]["resume"]["from"] == 5
        assert silent(socket)


def test_resume_with_cursor_on_another_pod(cluster: Cluster, aes: redis.Redis) -> None:
    """A cursor brings everything after it, and only that, on whichever pod."""
    push(aes, "cursor", 0, 10)
    with open_socket(cluster.pods[0], "cursor") as socket:
        fourth = receive_logged(socket, 10)[3]["metadata"]
    with open_socket(cluster.pods[1], "cursor", cursor=f"{fourth['epoch']}:4") as socket:
        assert receive(socket)["data"]["resume"]["status"] == "replayed"
        assert [m["metadata"]["seq"] for m in receive_logged(socket, 6)] == [5, 6, 7, 8, 9, 10]
        assert silent(socket)


@pytest.mark.parametrize("cursor", ["0abc:3", "{epoch}:99"])
def test_reset_is_said(cluster: Cluster, aes: redis.Redis, cursor: str) -> None:
    """A cursor of another epoch, or ahead of the log, is answered by a reset and everything that is left."""
    push(aes, "reset", 0, 3)
    wait_for(lambda: moved(aes), "the list is empty")
    with open_socket(cluster.pods[0], "reset") as socket:
        epoch = receive(socket)["data"]["resume"]["epoch"]
    with open_socket(cluster.pods[0], "reset", cursor=cursor.format(epoch=epoch)) as socket:
        resume = receive(socket)["data"]["resume"]
        assert (resume["status"], resume["oldest"]) == ("reset", 1)
        assert [m["metadata"]["seq"] for m in receive_logged(socket, 3)] == [1, 2, 3]


def test_every_socket_of_a_session_gets_every_message(cluster: Cluster, aes: redis.Redis) -> None:
    """Two devices on one pod and one on the other: each gets all, once."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(cluster.pods[n], "family")) for n in (0, 0, 1)]
        for socket in sockets:
            receive(socket)
        tasks = push(aes, "family", 0, 30)
        for socket in sockets:
            assert [m["task_id"] for m in receive_logged(socket, 30)] == tasks
            assert silent(socket)


def test_broken_subscription_heals_within_a_second(cluster: Cluster, aes: redis.Redis) -> None:
    """What was published while the pod's subscription was cut shows within 1 s, without a next message."""
    pod = cluster.pods[0]
    with open_socket(pod, "cut") as socket:
        receive(socket)
        for round_ in range(3):
            for client in aes.client_list():
                if client["name"] == "orchestrator-pod-feed":
                    aes.client_kill_filter(_id=client["id"])
            push(aes, "cut", round_ * 5, 5)
            began = time.monotonic()
            seqs = [m["metadata"]["seq"] for m in receive_logged(socket, 5, 5.0)]
            took = time.monotonic() - began
            assert seqs == list(range(round_ * 5 + 1, round_ * 5 + 6))
            assert took < 1.0
        for number in range(15, 20):  # and from then on they are pushed again, one by one
            push(aes, "cut", number, 1)
            began = time.monotonic()
            assert receive_logged(socket, 1, 5.0)[0]["metadata"]["seq"] == number + 1
            assert time.monotonic() - began < 1.0
        print(f"\nhealed {took * 1000:.0f} ms after the subscription was cut")


def test_a_loss_that_nothing_reports_shows_within_five_seconds(cluster: Cluster, aes: redis.Redis) -> None:
    """A message that is in the log but was never published is found by comparing positions."""
    with open_socket(cluster.pods[0], "silent-loss") as socket:
        receive(socket)
        push(aes, "silent-loss", 0, 1)
        entry = receive_logged(socket, 1)[0]
        base = "ao:{orchestrator:acme:callbacks}:s:silent-loss"
        stored = aes.lindex(f"{base}:log", 0)
        assert stored is not None
        with aes.pipeline() as transaction:  # as the transfer script does it, but for the PUBLISH
            transaction.rpush(f"{base}:log", stored)
            transaction.hincrby(base, "h", 1)
            transaction.execute()
        began = time.monotonic()
        again = receive_logged(socket, 1, 6.0)[0]
        took = time.monotonic() - began
        assert again["metadata"]["seq"] == entry["metadata"]["seq"] + 1
        assert took < 5.0
        print(f"\nsilent loss found after {took:.1f} s")


def test_replace_policy(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With SESSION_POLICY=replace a newer connection closes the older with 4003, on whichever pod."""
    folder = tmp_path_factory.mktemp("replace")
    with Cluster(folder, SESSION_POLICY="replace") as cluster, ExitStack() as stack:
        older = stack.enter_context(open_socket(cluster.pods[0], "one"))
        receive(older)
        for pod in (cluster.pods[1], cluster.pods[1]):
            newer = stack.enter_context(open_socket(pod, "one"))
            receive(newer)
            assert close_code(older) == 4003
            older = newer
        assert silent(newer)


def connections(pod: Pod, query: str = "") -> int:
    """What ``/ws/stats`` of a pod says."""
    status, stats = get(f"{pod.url}/ws/stats{query}")
    assert status == 200
    return int(stats["connections"])


def test_dead_pods_connections_disappear(own_cluster: Cluster) -> None:
    """/ws/stats speaks for the whole cluster, and forgets a killed pod's connections within 15 s."""
    first, second = own_cluster.pods
    places = [(first, f"s{n}", "acme") for n in range(3)] + [(second, "s9", "other")]
    with ExitStack() as stack:
        for pod, session_id, tenant_id in places:
            receive(stack.enter_context(open_socket(pod, session_id, tenant_id=tenant_id)))
        wait_for(lambda: connections(second) == 4, "both pods' connections are counted")
        assert connections(second, "?tenant_id=acme") == 3
        first.kill()
        took = wait_for(lambda: connections(second) == 1, "the dead pod's connections are gone", 15)
        assert connections(second, "?tenant_id=acme") == 0
    print(f"\nthe dead pod's connections were gone after {took:.1f} s")
    with redis.Redis(port=own_cluster.redis_port) as client:
        pattern = "ao:{pods:*"
        wait_for(lambda: len(list(client.scan_iter(pattern))) <= 3, "the dead pod's keys have expired", 15)


def test_a_pod_that_was_stopped_for_a_while_is_counted_again(tmp_path: Path) -> None:
    """Its connections count as gone while it is stopped, and as there when it goes on, each tenant's too."""
    with Cluster(tmp_path, PRESENCE_INTERVAL_S="0.3") as cluster:
        first, second = cluster.pods
        with open_socket(first, "s") as socket:
            receive(socket)
            wait_for(lambda: connections(second, "?tenant_id=acme") == 1, "counted")
            first.signal(signal.SIGSTOP)
            wait_for(lambda: connections(second) == 0, "forgotten", 5)
            with redis.Redis(port=cluster.redis_port) as client:
                wait_for(lambda: not client.keys("ao:{pods:*}:tenants"), "its entries too", 5)
            first.signal(signal.SIGCONT)
            wait_for(lambda: connections(second) == 1, "counted again", 5)
            wait_for(lambda: connections(second, "?tenant_id=acme") == 1, "its tenant's too", 5)
            assert silent(socket)
