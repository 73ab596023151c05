"""Valid examples of what the AES and clients send as JSON."""

from __future__ import annotations

from typing import Any

TENANT = "acme"

_BASE: dict[str, Any] = {
    "action_id": "exec_cb_t-1",
    "action_type": "execution.callback",
    "task_id": "t-1",
    "tenant_id": TENANT,
    "tenant_tier": "free",
    "session_id": "s-1",
    "execution_context": {"context_id": "agent-7", "agents": ["7"], "metadata": {}},
    "metadata": {"headers": {"x": "y"}},
    "timestamp": "2026-01-31T12:00:00",
}
_TOOL = {"call_id": "c", "name": "web", "status": "running", "args": {"q": "x"}, "result": None}

CALLBACKS: tuple[dict[str, Any], ...] = (
    {
        **_BASE,
        "status": "completed",
        "result": {"response": "42", "sources": [{"id": 1}], "agent_info": {"model_used": "m"}, "own": 1},
        "execution_time": 1.5,
        "tokens_used": {"prompt": 10},
    },
    {**_BASE, "execution_result": {"response": "é\n", "metadata": {"a": 1}}, "timestamp": "12:00+02:00"},
    {**_BASE, "status": "success", "data": {"response": None}, "task_id": None},
    {**_BASE, "status": "failed", "result": {"error": {"type": "ToolError", "message": "none", "hint": 1}}},
    {**_BASE, "status": "timeout", "error": "too slow"},
    {**_BASE, "status": "cancelled", "error": {"message": "by hand", "retryable": True}},
    {**_BASE, "action_type": "execution.error", "data": {"error": "broke", "success": False}},
    {**_BASE, "action_type": "agent_execution_callback", "data": {"success": False}},
    {
        **_BASE,
        "action_type": "execution.progress",
        "data": {"status": "working", "step": "s", "message": "m", "progress": 0.5, "tool": _TOOL},
    },
    {
        **_BASE,
        "action_type": "execution.chunk",
        "attempt": 2,
        "data": {"delta": "4", "offset": 0, "part": "text"},
    },
    {"session_id": "s-1"},
    {
        **_BASE,
        "action_type": "execution.progress",
        "data": {"status": "input_required", "timeout": 30.5},
    },
)
"""One callback of every shape that the contract names, and the least there can be."""

_CHAT: dict[str, Any] = {
    "message": "é€🎉\n",
    "message_type": "markdown",
    "user_info": {"name": "Ann", "deep": [{"a": None, "b": [1.5, -0.0, 10**20]}]},
    "max_iterations": 5,
    "client_message_id": "c-1",
    "busy_policy": "reject",
    "timeout": 20,
    "agent_id": "sales",
    "later": 1,
}

MESSAGES: tuple[dict[str, Any], ...] = (
    {"type": "ping"},
    {"type": "ping", "ref": "r"},
    {"type": "pong", "ref": 7},
    {"type": "ack", "seq": 3},
    {"type": "ack", "seq": 0, "ref": "r", "later": {}},
    {"type": "cancel", "task_id": "t-1", "reason": "enough", "ref": "r"},
    {"type": "cancel", "client_message_id": "c-1"},
    {"type": "chat", "message": "hello"},
    {"type": "chat", **_CHAT, "ref": "r"},
)
"""What a client may send on a socket; the chats without their type are bodies of a send too."""

_ASKED: dict[str, Any] = {"id": "m-2", "role": "user", "content": "and now?"}
_TEXT: dict[str, Any] = {"type": "text", "text": "why? é€🎉"}

RUNS: tuple[dict[str, Any], ...] = (
    {"threadId": "th", "runId": "r-1", "protocolVersion": "1.0", "messages": [_ASKED]},
    {
        "threadId": "s-1",
        "runId": "t-1",
        "state": {"a": 1},
        "tools": [],
        "context": [],
        "forwardedProps": {},
        "messages": [
            {"id": "m-1", "role": "user", "content": [_TEXT, {"type": "text", "text": ""}]},
            {
                "id": "t-1",
                "role": "assistant",
                "content": "So ",
                "toolCalls": [{"id": "c", "type": "function"}],
            },
            {"id": "x", "role": "tool", "toolCallId": "c", "content": "7"},
            _ASKED,
        ],
    },
    {
        "threadId": "th",
        "runId": "r-2",
        "messages": [],
        "resume": [{"interruptId": "i-1", "status": "resolved", "payload": {"yes": [1]}}],
    },
    {"threadId": "th", "runId": "r", "messages": [{"role": "user", "content": [{"type": "image"}]}]},
    {"id": "c-1", "message": {"id": "m", "role": "user", "parts": [_TEXT]}, "trigger": "regenerate-message"},
    {
        "id": "c-1",
        "trigger": "submit-message",
        "messages": [
            {"id": "a", "role": "assistant", "parts": [{"type": "step-start"}, _TEXT]},
            {
                "id": "m",
                "role": "user",
                "metadata": {},
                "parts": [_TEXT, {"type": "data-x", "data": 1}, _TEXT],
            },
        ],
    },
)
"""What the clients of other protocols post: first to AG-UI, then as the AI SDK does."""
