"""The callback shapes of the contract, section 1, each as an AES sends it, and what the client receives."""

from __future__ import annotations

import json
from typing import Any

import redis

from tests.support.processes import Cluster
from tests.support.talk import open_socket, receive

BASE: dict[str, Any] = {
    "action_id": "exec_cb_t", "action_type": "execution.callback", "task_id": "t", "tenant_id": "acme",
    "tenant_tier": "free", "session_id": "shapes", "timestamp": "2026-01-31T12:00:00", "unknown": {"x": 1},
}  # fmt: skip

ANSWER = {"response": "42", "sources": [{"id": 1}], "agent_info": {"model_used": "m"}, "own": [1, None]}

SHAPES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "completed",
        {"status": "completed", "result": ANSWER, "execution_time": 1.5, "tokens_used": {"total": 3}},
        "agent_response",
        {
            **ANSWER,
            "task_id": "t",
            "status": "completed",
            "metadata": {"processing_time": 1.5, "tokens_used": {"total": 3}, "model_used": "m"},
        },
    ),
    (
        "completed, optional fields missing",
        {"status": "completed", "result": {"response": "42"}},
        "agent_response",
        {"response": "42", "sources": [], "agent_info": {}},
    ),
    (
        "completed, the answer under execution_result",
        {"status": "completed", "execution_result": {"response": "42"}},
        "agent_response",
        {"response": "42"},
    ),
    (
        "completed, the answer under data, offset timestamp",
        {"status": "completed", "data": {"response": "42"}, "timestamp": "2026-01-31T12:00:00+02:00"},
        "agent_response",
        {"response": "42"},
    ),
    (
        "failed",
        {"status": "failed", "result": {"error": {"type": "ToolError", "message": "no tool", "hint": 1}}},
        "error",
        {
            "error": "no tool",
            "error_type": "ToolError",
            "error_code": "agent_failed",
            "status": "failed",
            "retryable": False,
        },
    ),
    (
        "timeout",
        {"status": "timeout", "result": {"error": {"type": "Timeout", "message": "too slow"}}},
        "error",
        {"error": "too slow", "error_code": "agent_timeout", "status": "timeout", "retryable": True},
    ),
    (
        "execution.error",
        {"action_type": "execution.error", "data": {"error": "broke", "success": False}},
        "error",
        {"error": "broke", "error_code": "agent_failed", "status": "failed"},
    ),
    (
        "…_callback with data.success false",
        {
            "action_type": "agent_execution_callback",
            "data": {"error": {"message": "broke"}, "success": False},
        },
        "error",
        {"error": "broke", "status": "failed"},
    ),
    (
        "progress",
        {
            "action_type": "execution.progress",
            "data": {"status": "working", "step": "search", "message": "looking", "progress": 0.5,
                     "tool": {"call_id": "c", "name": "web", "status": "running"}},
        },
        "task_update",
        {"task_id": "t", "status": "working", "step": "search", "message": "looking", "progress": 0.5,
         "tool": {"call_id": "c", "name": "web", "status": "running"}},
    ),
    (
        "chunk",
        {
            "action_type": "execution.chunk",
            "task_id": "streamed",  # the other one has ended
            "data": {"delta": "4", "offset": 0, "part": "text"},
        },
        "agent_chunk",
        {"task_id": "streamed", "delta": "4", "offset": 0, "attempt": 1, "part": "text"},
    ),
]  # fmt: skip


def test_every_shape_reaches_the_client(cluster: Cluster, aes: redis.Redis) -> None:
    """Each shape becomes the message that the contract's table says, in the order of the list, numbered."""
    with open_socket(cluster.pods[0], "shapes", stream="1") as socket:
        receive(socket)
        for number, (_, fields, _, _) in enumerate(SHAPES):
            callback = {**BASE, "action_id": f"exec_cb_{number}", **fields}
            aes.lpush("orchestrator:acme:callbacks", json.dumps(callback))
        seq = 0
        for name, _, kind, data in SHAPES:
            message = receive(socket)
            assert message["type"] == kind, name
            assert data.items() <= message["data"].items(), name
            assert (message["session_id"], message["tenant_id"], message["task_id"]) == (
                "shapes",
                "acme",
                data.get("task_id", "t"),
            )
            assert message["timestamp"].endswith("Z")
            if kind != "agent_chunk":
                seq += 1
                assert message["metadata"]["seq"] == seq, name
            print(f"\n{name:50} -> {message['type']} {json.dumps(message['data'])[:110]}", end="")


def test_the_same_callback_twice_is_one_message(cluster: Cluster, aes: redis.Redis) -> None:
    """Same action_id, task_id and status: delivered once, whatever else differs."""
    callback = {**BASE, "session_id": "twice", "status": "completed", "result": {"response": "1"}}
    later = {**callback, "timestamp": "2026-01-31T12:00:09"}
    other = {**callback, "action_id": "exec_cb_u", "task_id": "u"}
    with open_socket(cluster.pods[0], "twice") as socket:
        receive(socket)
        aes.lpush("orchestrator:acme:callbacks", *map(json.dumps, (callback, callback, later, other)))
        assert [receive(socket)["task_id"] for _ in range(2)] == ["t", "u"]


def test_a_task_that_no_pod_accepted_is_delivered(cluster: Cluster, aes: redis.Redis) -> None:
    """The list and the session decide, not whether a pod knows the task; unknown tenants are found too."""
    with open_socket(cluster.pods[1], "elsewhere", tenant_id="brand-new") as socket:
        receive(socket)
        callback = {**BASE, "tenant_id": "brand-new", "session_id": "elsewhere", "status": "completed"}
        aes.lpush("orchestrator:brand-new:callbacks", json.dumps(callback))
        assert receive(socket)["type"] == "agent_response"
