"""A task's whole life, as its client and whoever asks for it see it: on any pod, and with one end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
import redis

from tests.support.processes import Cluster, get, post, wait_for
from tests.support.talk import (
    Message,
    open_socket,
    receive,
    receive_ends,
    receive_logged,
    receive_other,
    silent,
)

LIST = "orchestrator:acme:callbacks"
QUEUE = "nooble4:dev:agent_execution_service:actions:free"
GRACE_S = 1.0
WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods, two routers, and limits that nobody here reaches."""
    with Cluster(
        tmp_path_factory.mktemp("cluster"), routers=2, DEADLINE_GRACE_S=str(GRACE_S), unlimited=True
    ) as running:
        yield running


@pytest.fixture
def aes(cluster: Cluster) -> Iterator[redis.Redis]:
    """Redis as the AES sees it, its queue empty."""
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as client:
        client.delete(QUEUE)
        yield client


def send(
    cluster: Cluster, session_id: str, body: Any = None, pod: int = 0, key: str = "", timeout: str = ""
) -> tuple[int, dict[str, Any]]:
    more = {"Idempotency-Key": key, "X-Task-Timeout": timeout}
    asked = {**WHO, "X-Session-ID": session_id, **{name: value for name, value in more.items() if value}}
    url = f"{cluster.pods[pod].url}/api/chat/send"
    return post(url, {"message": "hello"} if body is None else body, headers=asked)


def task_of(cluster: Cluster, task_id: str, pod: int = 1) -> dict[str, Any]:
    status, record = get(f"{cluster.pods[pod].url}/api/chat/tasks/{task_id}", headers=WHO)
    assert status == 200, record
    return dict(record)


def cancel(cluster: Cluster, task_id: str, pod: int = 1, reason: str = "") -> dict[str, Any]:
    url = f"{cluster.pods[pod].url}/api/chat/tasks/{quote(task_id, safe='')}/cancel"
    status, answer = post(url, {"reason": reason}, headers=WHO)
    assert status == 200, answer
    return dict(answer)


def take(aes: redis.Redis) -> dict[str, Any]:
    """The next action, as the AES takes it."""
    popped: Any = aes.brpop([QUEUE], 5)
    action: dict[str, Any] = json.loads(popped[1])
    return action


def answer(aes: redis.Redis, action: dict[str, Any], text: str = "hi", **more: Any) -> None:
    said = {
        "action_id": str(uuid4()),
        "action_type": "execution.callback",
        "task_id": action["task_id"],
        "tenant_id": action["tenant_id"],
        "session_id": action["session_id"],
        "status": "completed",
        "result": {"response": text, "agent_info": {"model_used": "m-1"}},
        "execution_time": 1.5,
        "tokens_used": {"total": 7},
    }
    aes.lpush(action["callback_queue"], json.dumps({**said, **more}))


def progress(aes: redis.Redis, action: dict[str, Any], **data: Any) -> None:
    said = {"action_type": "execution.progress", "action_id": str(uuid4()), "data": data}
    base = {name: action[name] for name in ("task_id", "tenant_id", "session_id")}
    aes.lpush(action["callback_queue"], json.dumps({**base, **said}))


def ends(messages: list[Message]) -> list[tuple[str, str]]:
    """The terminal ones: task and status."""
    terminal = [message for message in messages if message["type"] in ("agent_response", "error")]
    return [(message["task_id"], message["data"]["status"]) for message in terminal]


# The record.


def test_a_tasks_record_from_its_beginning_to_its_end(cluster: Cluster, aes: redis.Redis) -> None:
    """On a pod that never saw it: how it goes, when, how far, and what it has used."""
    status, sent = send(cluster, "life")
    assert status == 200
    task_id = sent["task_id"]
    record = task_of(cluster, task_id)
    assert (record["status"], record["session_id"], record["agent_id"]) == ("queued", "life", "agent-1")
    assert (record["deadline_at"], record["cursor"]) == (sent["deadline_at"], sent["cursor"])
    wait_for(lambda: task_of(cluster, task_id)["messages"] is not None, "the question is in the log")
    action = take(aes)
    progress(aes, action, status="working", step="think")
    wait_for(lambda: task_of(cluster, task_id)["status"] == "working", "working")
    assert task_of(cluster, task_id)["started_at"] is not None
    answer(aes, action)
    wait_for(lambda: task_of(cluster, task_id)["status"] == "completed", "completed")
    record = task_of(cluster, task_id)
    assert record["messages"] == {"epoch": sent["cursor"].split(":")[0], "first": 1, "last": 3}
    assert record["usage"] == {"processing_time": 1.5, "tokens_used": {"total": 7}, "model_used": "m-1"}
    assert record["created_at"] < record["started_at"] <= record["ended_at"]


def test_a_task_that_nobody_knows(cluster: Cluster) -> None:
    """404 for what is not there, for another tenant's, and 400 for what is no id."""
    _, sent = send(cluster, "mine")
    url = f"{cluster.pods[0].url}/api/chat/tasks/"
    other = {**WHO, "X-Tenant-ID": "other"}
    for task_id, who in (("nothing", WHO), (sent["task_id"], other)):
        assert get(url + task_id, headers=who)[1]["error_code"] == "unknown_task"
        assert post(f"{url}{task_id}/cancel", {}, headers=who)[1]["error_code"] == "unknown_task"
    assert get(f"{url}a%20b", headers=WHO)[1]["error_code"] == "invalid_id"
    assert task_of(cluster, sent["task_id"])["status"] == "queued"


def test_what_a_user_says_is_shown_on_all_of_his_devices(cluster: Cluster, aes: redis.Redis) -> None:
    """Once, before the first that is said of it, and to who comes later as well."""
    session_id = "devices"
    with (
        open_socket(cluster.pods[0], session_id) as socket,
        open_socket(cluster.pods[1], session_id) as other,
    ):
        receive(socket), receive(other)
        for number in range(20):
            words = {"type": "chat", "message": f"question {number}", "client_message_id": f"m-{number}"}
            socket.send(json.dumps(words))
            answer(aes, take(aes), f"answer {number}")
        for device in (socket, other):
            told = receive_logged(device, 40)
            asked = [message for message in told if message["type"] == "user_message"]
            assert [one["data"]["client_message_id"] for one in asked] == [f"m-{n}" for n in range(20)]
            for one in asked:
                of_task = [message["type"] for message in told if message["task_id"] == one["task_id"]]
                assert of_task == ["user_message", "agent_response"]
    status, page = get(f"{cluster.pods[0].url}/api/chat/sessions/{session_id}/messages", headers=WHO)
    assert (status, page["messages"][0]["data"]["message"]) == (200, "question 0")


# Deadlines.


def test_a_silent_aes_ends_in_a_timeout(cluster: Cluster, aes: redis.Redis) -> None:
    """Within a second of deadline and grace, once; what comes then is kept, not shown."""
    with open_socket(cluster.pods[0], "silent") as socket:
        assert receive(socket)["type"] == "connection_ack"
        began = time.time()
        _, sent = send(cluster, "silent", timeout="1")
        action = take(aes)
        assert action["timeout"] == 1
        (ended,) = receive_ends(socket, 1)
        took = time.time() - began
        assert (ended["type"], ended["data"]["status"], ended["data"]["retryable"]) == (
            "error",
            "timeout",
            True,
        )
        assert 1 + GRACE_S <= took < 1 + GRACE_S + 1
        answer(aes, action, "too late")
        wait_for(lambda: task_of(cluster, sent["task_id"])["late"] == 1, "it was counted")
        assert silent(socket)
    record = task_of(cluster, sent["task_id"])
    assert (record["status"], record["late_answer"]["data"]["response"]) == ("timeout", "too late")


def test_progress_can_ask_for_more_time(cluster: Cluster, aes: redis.Redis) -> None:
    """And then the deadline is a later one, which the record tells."""
    with open_socket(cluster.pods[1], "longer") as socket:
        receive(socket)
        _, sent = send(cluster, "longer", timeout="1")
        action = take(aes)
        progress(aes, action, status="working", timeout=4)
        wait_for(lambda: task_of(cluster, sent["task_id"])["deadline_at"] > sent["deadline_at"], "later")
        began = time.time()
        told = receive_ends(socket, 2)
        assert [message["type"] for message in told] == ["task_update", "error"]
        assert 2 + GRACE_S < time.time() - began < 5 + GRACE_S


# Cancelling.


@pytest.mark.parametrize("over", ["http", "socket", "client_message_id"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_task_is_cancelled(cluster: Cluster, aes: redis.Redis, over: str, when: str) -> None:
    """From any device and pod, before or after the AES took it: one end, and the AES is told once."""
    session_id = f"cancel-{over}-{when}"
    with (
        open_socket(cluster.pods[0], session_id) as socket,
        open_socket(cluster.pods[1], session_id) as other,
    ):
        receive(socket), receive(other)
        _, sent = send(cluster, session_id, {"message": "hello", "client_message_id": "m-1"})
        action = take(aes) if when == "after" else None
        words = {"task_id": sent["task_id"]} if over == "socket" else {"client_message_id": "m-1"}
        for _ in range(3):
            if over == "http":
                told = cancel(cluster, sent["task_id"], reason="enough")
            else:
                other.send(json.dumps({"type": "cancel", "ref": 1, "reason": "enough", **words}))
                while (message := receive(other))["type"] != "ack":
                    pass
                told = message["data"]
            assert (told["status"], told["cancelled"]) == ("cancelled", True)
        (ended,) = receive_ends(socket, 1)
        assert (ended["data"]["status"], ended["data"]["error_code"]) == ("cancelled", "cancelled")
        assert ended["data"]["metadata"]["reason"] == "enough"
        action = action or take(aes)
        word = take(aes)
        assert (word["action_type"], word["task_id"], word["reason"]) == (
            "chat.cancel",
            sent["task_id"],
            "enough",
        )
        assert aes.llen(QUEUE) == 0
        progress(aes, action, status="working")
        answer(aes, action)
        wait_for(lambda: task_of(cluster, sent["task_id"])["late"] == 2, "both were counted")
        assert silent(socket)
    assert task_of(cluster, sent["task_id"])["status"] == "cancelled"


def test_what_has_ended_is_not_cancelled(cluster: Cluster, aes: redis.Redis) -> None:
    """It is told how it ended."""
    _, sent = send(cluster, "over")
    answer(aes, take(aes))
    wait_for(lambda: task_of(cluster, sent["task_id"])["status"] == "completed", "completed")
    assert cancel(cluster, sent["task_id"])["status"] == "completed"
    assert aes.llen(QUEUE) == 0


# Sending the same again.


@pytest.mark.parametrize("name", ["Idempotency-Key", "client_message_id"])
def test_sent_many_times_at_once(cluster: Cluster, aes: redis.Redis, name: str) -> None:
    """On two pods: one task, one action."""
    body = {"message": "hello"} | ({name: "n-1"} if name == "client_message_id" else {})
    key = "" if name == "client_message_id" else "n-1"

    def one(number: int) -> tuple[int, dict[str, Any]]:
        return send(cluster, f"same-{name}", body, pod=number % 2, key=key)

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(one, range(50)))
    assert {status for status, _ in answers} == {200}
    assert len({sent["task_id"] for _, sent in answers}) == 1
    assert len({sent["cursor"] for _, sent in answers}) == 1
    assert sorted(sent["duplicate"] for _, sent in answers) == [False] + [True] * 49
    assert aes.llen(QUEUE) == 1
    status, refused = send(cluster, f"same-{name}", {**body, "message": "other"}, key=key)
    assert (status, refused["error_code"]) == (409, "idempotency_conflict")
    status, elsewhere = send(cluster, f"elsewhere-{name}", body, key=key)
    assert (status, elsewhere["duplicate"]) == (200, False)


# A busy session.


def test_a_busy_session_that_refuses(cluster: Cluster, aes: redis.Redis) -> None:
    """Until its task has ended."""
    send(cluster, "reject")
    body = {"message": "again", "busy_policy": "reject"}
    status, refused = send(cluster, "reject", body)
    assert (status, refused["error_code"]) == (409, "session_busy")
    answer(aes, take(aes))
    wait_for(lambda: send(cluster, "reject", body)[0] == 200, "free")


def test_a_busy_session_that_is_interrupted(cluster: Cluster, aes: redis.Redis) -> None:
    """The task before ends as cancelled, and the new one runs."""
    with open_socket(cluster.pods[1], "interrupt") as socket:
        receive(socket)
        _, first = send(cluster, "interrupt")
        _, second = send(cluster, "interrupt", {"message": "no, this", "busy_policy": "interrupt"})
        (ended,) = receive_ends(socket, 1)
        assert (ended["task_id"], ended["data"]["status"]) == (first["task_id"], "cancelled")
        assert ended["data"]["metadata"]["reason"] == "interrupted"
        taken = [take(aes) for _ in range(3)]
        assert [action["action_type"].split(".")[1] for action in taken] == [
            "agent_run",
            "agent_run",
            "cancel",
        ]
        for action in taken[:2]:
            answer(aes, action)
        (told,) = receive_ends(socket, 1)
        assert (told["task_id"], told["data"]["status"]) == (second["task_id"], "completed")
        assert silent(socket)


# What an agent asks its user.


def ask(aes: redis.Redis, action: dict[str, Any], input_id: str, **more: Any) -> None:
    progress(aes, action, status="input_required", input={"input_id": input_id, "prompt": "Which?", **more})


def test_an_agent_asks(cluster: Cluster, aes: redis.Redis) -> None:
    """All devices see the question; the first answer counts, once, and all see that it was given."""
    session_id = "asks"
    with (
        open_socket(cluster.pods[0], session_id) as socket,
        open_socket(cluster.pods[1], session_id) as other,
    ):
        receive(socket), receive(other)
        _, sent = send(cluster, session_id, timeout="5")
        action = take(aes)
        ask(aes, action, "i-1", schema={"type": "string"}, expires_in=60)
        for device in (socket, other):
            (asked,) = receive_ends(device, 1)
            assert asked["type"] == "input_required"
            data = asked["data"]
            assert (data["input_id"], data["prompt"], data["schema"]) == ("i-1", "Which?", {"type": "string"})
            assert data["expires_at"] is not None
        record = task_of(cluster, sent["task_id"])
        assert (record["status"], record["input_required"]) == ("working", True)
        assert record["deadline_at"] > sent["deadline_at"]
        said = {"type": "input", "task_id": sent["task_id"], "input_id": "i-1", "value": {"a": [1]}, "ref": 7}
        for _ in range(3):
            other.send(json.dumps(said))
        acks = [message for message in (receive_other(other) for _ in range(4)) if message["type"] == "ack"]
        assert len(acks) == 3
        taken = take(aes)
        assert (taken["action_type"], taken["task_id"]) == ("execution.input", sent["task_id"])
        assert taken["data"] == {"input_id": "i-1", "value": {"a": [1]}}
        assert aes.llen(QUEUE) == 0
        (update,) = receive_ends(socket, 1)
        assert (update["data"]["step"], update["data"]["input_id"]) == ("input_received", "i-1")
        assert not task_of(cluster, sent["task_id"])["input_required"]
        url = f"{cluster.pods[0].url}/api/chat/tasks/{sent['task_id']}/input"
        for body in ({"input_id": "i-1", "value": "other"}, {"input_id": "i-2", "value": 1}):
            assert post(url, body, headers=WHO)[1]["error_code"] == "input_not_wanted"
        answer(aes, action)
        (ended,) = receive_ends(socket, 1)
        assert ended["type"] == "agent_response"
        assert silent(socket)


def test_an_answer_that_comes_too_late(cluster: Cluster, aes: redis.Redis) -> None:
    """It is told so; the agent goes on as it can."""
    _, sent = send(cluster, "late-input")
    action = take(aes)
    ask(aes, action, "i-1", expires_in=0.05)
    wait_for(lambda: task_of(cluster, sent["task_id"])["input_required"], "asked")
    url = f"{cluster.pods[0].url}/api/chat/tasks/{sent['task_id']}/input"
    expired_at = time.time() + 0.1
    wait_for(lambda: time.time() > expired_at, "expired")
    assert post(url, {"input_id": "i-1", "value": 1}, headers=WHO)[1]["error_code"] == "input_expired"
    assert aes.llen(QUEUE) == 0
