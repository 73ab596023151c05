"""Busy, talkative and lonely sessions in real processes: waiting sends, floods of steps, sockets gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.test_tasks import QUEUE, WHO, answer, cancel, progress, send, take, task_of
from tests.support.processes import Cluster, get, post, wait_for
from tests.support.sabotage import sabotaged
from tests.support.talk import Message, open_socket, receive, receive_ends, receive_other, silent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods, two routers, and limits that nobody here reaches."""
    with Cluster(
        tmp_path_factory.mktemp("cluster"),
        routers=2,
        PRESENCE_INTERVAL_S="0.5",
        DEADLINE_GRACE_S="0.5",
        unlimited=True,
    ) as running:
        yield running


@pytest.fixture
def aes(cluster: Cluster) -> Iterator[redis.Redis]:
    """Redis as the AES sees it, its queue empty."""
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as client:
        client.delete(QUEUE)
        yield client


def enqueue(cluster: Cluster, session_id: str, message: str, **more: Any) -> dict[str, Any]:
    """A send over HTTP that waits."""
    status, sent = send(cluster, session_id, {"message": message, "busy_policy": "enqueue", **more})
    assert (status, sent.get("deadline_at", "")) == (200, None), sent
    return sent


def ack(socket: Any) -> Message:
    """The next one."""
    while (message := receive(socket))["type"] != "ack":
        pass
    return message


def is_past(at: float) -> bool:
    """Whether a moment is over."""
    return time.time() >= at


# Waiting sends.


@pytest.mark.parametrize("when", ["dying_before_push", "dying_after_push"])
def test_a_router_dies_between_two_tasks(tmp_path: Path, when: str) -> None:
    """The first has ended, the second was about to be pushed: it is, once, and the third after it."""
    with (
        Cluster(tmp_path, routers=1, unlimited=True, appendfsync="always") as cluster,
        redis.Redis(port=cluster.redis_port, decode_responses=True) as aes,
        open_socket(cluster.pods[1], "s") as socket,
    ):
        (router,) = cluster.routers
        whole = router.command
        router.stop()
        sabotaged(router, when)
        assert receive(socket)["type"] == "connection_ack"
        assert send(cluster, "s", {"message": "1"})[0] == 200
        first = take(aes)
        wait_for(lambda: task_of(cluster, first["task_id"])["messages"] is not None, "settled")
        router.start()
        second = enqueue(cluster, "s", "2")
        said = {"type": "chat", "ref": 1, "message": "3", "busy_policy": "enqueue"}
        socket.send(json.dumps(said))
        third = ack(socket)["data"]
        assert third["deadline_at"] is None
        with open_socket(cluster.pods[0], "s") as other:
            tasks = receive(other)["data"]["active_tasks"]
            assert [(task["task_id"], task["status"], task["deadline_at"] is None) for task in tasks] == [
                (first["task_id"], "queued", False),
                (second["task_id"], "queued", True),
                (third["task_id"], "queued", True),
            ]
        assert aes.llen(QUEUE) == 0
        answer(aes, first, "1")
        wait_for(lambda: router.popen is not None and router.popen.poll() is not None, "the router died")
        assert aes.llen(QUEUE) == (when == "dying_after_push")
        router.command = whole
        router.start()
        for number, sent in ((2, second), (3, third)):
            action = take(aes)
            assert (action["task_id"], action["message"]) == (sent["task_id"], str(number))
            assert task_of(cluster, sent["task_id"])["deadline_at"] is not None
            assert aes.llen(QUEUE) == 0
            answer(aes, action, str(number))
        told = receive_ends(socket, 3)
        assert [message["data"]["response"] for message in told] == ["1", "2", "3"]
        assert silent(socket)


def test_a_conversation_in_order(cluster: Cluster, aes: redis.Redis) -> None:
    """Sends of both pods, faster than the agent: each when the one before has ended, in whatever way."""
    with open_socket(cluster.pods[1], "talk") as socket:
        receive(socket)
        assert send(cluster, "talk", {"message": "0"})[0] == 200
        tasks = [enqueue(cluster, "talk", str(number))["task_id"] for number in range(1, 8)]
        questions = [receive(socket) for _ in range(8)]
        assert sorted(one["data"]["message"] for one in questions) == [str(number) for number in range(8)]
        assert cancel(cluster, tasks[2])["status"] == "cancelled"
        assert receive_ends(socket, 1)[0]["task_id"] == tasks[2]
        for number in (0, 1, 2, 4, 5, 6, 7):
            action = take(aes)
            assert (action["action_type"], action["message"]) == ("execution.agent_run", str(number))
            assert aes.llen(QUEUE) == 0
            if number == 5:
                cancel(cluster, action["task_id"])
                assert take(aes)["action_type"] == "chat.cancel"
            else:
                answer(aes, action, str(number))
            (ended,) = receive_ends(socket, 1)
            assert ended["task_id"] == action["task_id"]
        assert silent(socket)


def test_one_that_waits_is_cancelled_by_its_messages_id(cluster: Cluster, aes: redis.Redis) -> None:
    """The AES hears nothing of it, neither its action nor a cancel."""
    send(cluster, "named")
    enqueue(cluster, "named", "again", client_message_id="m-1")
    url = f"{cluster.pods[1].url}/api/chat/cancel"
    headers = {**WHO, "X-Session-ID": "named"}
    status, told = post(url, {"client_message_id": "m-1"}, headers=headers)
    assert (status, told["status"]) == (200, "cancelled")
    answer(aes, take(aes))
    action = {"task_id": send(cluster, "named", {"message": "last"})[1]["task_id"]}
    assert take(aes)["task_id"] == action["task_id"]
    assert aes.llen(QUEUE) == 0


# Sockets that leave.


def test_whoever_leaves_lets_his_task_go(cluster: Cluster, aes: redis.Redis) -> None:
    """A second after his last socket has gone; what was sent without asking for that goes on."""
    with open_socket(cluster.pods[1], "leaves") as second:
        receive(second)
        with open_socket(cluster.pods[0], "leaves") as first:
            receive(first)
            first.send('{"type": "chat", "ref": 1, "message": "hello", "cancel_if_left_s": 1}')
            task_id = ack(first)["data"]["task_id"]
        take(aes)
        kept = send(cluster, "leaves")[1]["task_id"]
        take(aes)
        wait_for(partial(is_past, time.time() + 3), "looked for somebody twice")
        assert task_of(cluster, task_id)["status"] == "queued"
    left_at = time.time()
    wait_for(lambda: task_of(cluster, task_id)["status"] == "cancelled", "cancelled")
    assert 1.0 <= time.time() - left_at < 3.5
    assert task_of(cluster, task_id)["reason"] == "nobody_left"
    word = take(aes)
    assert (word["action_type"], word["task_id"], word["reason"]) == ("chat.cancel", task_id, "nobody_left")
    assert task_of(cluster, kept)["status"] == "queued"


def test_whose_pod_is_killed(cluster: Cluster, aes: redis.Redis) -> None:
    """His sockets go with it, although nobody has taken them off."""
    pod = cluster.pods[1]
    with ExitStack() as stack:
        stack.callback(wait_for, pod.ready, "pod ready")
        stack.callback(pod.start)
        socket = stack.enter_context(open_socket(pod, "killed"))
        receive(socket)
        _, sent = send(cluster, "killed", {"message": "hello", "cancel_if_left_s": 1})
        take(aes)
        pod.kill()
        wait_for(lambda: task_of(cluster, sent["task_id"], pod=0)["status"] == "cancelled", "cancelled", 10)
        assert take(aes)["reason"] == "nobody_left"


# Steps.


def test_a_flood_of_one_step(cluster: Cluster, aes: redis.Redis) -> None:
    """500 reports in 2 s: the socket and the log get a few, the first at once and the newest at last."""
    with open_socket(cluster.pods[0], "flood") as socket:
        receive(socket)
        send(cluster, "flood")
        action = take(aes)
        began = time.time()
        for number in range(500):
            wait_for(partial(is_past, began + number / 250), "its time")
            progress(aes, action, step="read", message=str(number), progress=number / 500)
        took = time.time() - began
        told = list[Message]()
        while not told or told[-1]["data"]["message"] != "499":
            told.append(receive_other(socket, 2.0))
            if told[-1]["type"] != "task_update":
                told.pop()
        assert time.time() - began - took < 1
        numbers = [int(message["data"]["message"]) for message in told]
        assert numbers == sorted(set(numbers))
        assert numbers[0] == 0
        assert 4 <= len(numbers) <= took / 0.25 + 2
        url = f"{cluster.pods[1].url}/api/chat/sessions/flood/messages"
        page = get(url, headers=WHO)[1]["messages"]
        assert [one["metadata"]["seq"] for one in page] == list(range(1, len(numbers) + 2))
        assert [one["data"]["message"] for one in page[1:]] == [str(number) for number in numbers]
        progress(aes, action, step="read", message="last")
        answer(aes, action)
        assert [message["type"] for message in receive_ends(socket, 2)] == ["task_update", "agent_response"]
        routers = get(f"{cluster.pods[0].url}/api/chat/stats")[1]["routers"]
        assert "collapsed" in routers[0]
