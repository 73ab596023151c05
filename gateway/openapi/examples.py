"""Examples that several operations share; those of event streams are written by what writes the streams."""

from __future__ import annotations

from typing import Any

import msgspec

from backplane.messages import Message, to_entry, to_json, with_position
from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.ai_sdk import AiSdkEncoder
from gateway.event_framing import NATIVE_PLAIN, Encoded, EventFraming

TASK_ID = "0b0e8a4e-7d0f-4a1c-9b52-6f0c3f0f5c11"
EPOCH = "63f1c2a9d4e5b6a1b2c3"
CURSOR = f"{EPOCH}:0"
_SAID_AT, _ANSWERED_AT = "2026-01-31T12:00:00.000Z", "2026-01-31T12:00:02.000Z"
_BEGUN_WITHIN_MS = 400


def _message(at: str, kind: str, data: dict[str, Any]) -> Message:
    return Message(at, kind, data.get("task_id"), "s-1", "acme", "free", data, {})


_GREETING = {
    "connection_id": "2f4e6a", "session_id": "s-1", "tenant_id": "acme", "tenant_tier": "free",
    "server_time": 1769860800.0, "heartbeat_s": 25.0, "cursor": CURSOR,
    "resume": {"status": "replayed", "from": 0, "to": 2, "oldest": 1, "epoch": EPOCH},
    "active_tasks": [],
    "limits": {
        "message_max_bytes": 65536, "sends_in_flight_max": 16, "messages_per_s": 20, "messages_burst": 100,
        "token_expires_at": 1769864400.0, "auth_grace_s": 30.0,
    },
}  # fmt: skip
_QUESTION = {
    "task_id": TASK_ID, "message": "hello", "message_type": "text", "client_message_id": "m-1",
    "user_id": "ann", "agent_id": "sales",
}  # fmt: skip
_USAGE = {"processing_time": 1.5, "tokens_used": {"total": 21}, "model_used": "a-model"}
_RESPONSE = {
    "response": "Hello, Ann.", "sources": [], "agent_info": {"model_used": "a-model"}, "task_id": TASK_ID,
    "status": "completed", "metadata": _USAGE,
}  # fmt: skip
_LOG = [
    to_entry(_message(_SAID_AT, "user_message", _QUESTION)),
    to_entry(_message(_ANSWERED_AT, "agent_response", _RESPONSE)),
]

MESSAGES: list[dict[str, Any]] = [
    msgspec.json.decode(with_position(entry, EPOCH, seq)) for seq, entry in enumerate(_LOG, 1)
]

TASK = {
    "task_id": TASK_ID, "tenant_id": "acme", "session_id": "s-1", "agent_id": "sales", "status": "completed",
    "input_required": False, "attempt": 1, "cursor": CURSOR,
    "messages": {"epoch": EPOCH, "first": 1, "last": 2}, "usage": _USAGE, "reason": None, "late": 0,
    "late_answer": None, "created_at": "2026-01-31T12:00:00+00:00",
    "started_at": "2026-01-31T12:00:02+00:00", "ended_at": "2026-01-31T12:00:02+00:00",
    "deadline_at": "2026-01-31T12:00:30+00:00",
}  # fmt: skip


def streams() -> dict[str, str]:
    """The session of these messages as an event stream, by format."""
    framings: dict[str, EventFraming] = {
        "native": NATIVE_PLAIN,
        "ag-ui": Encoded(AgUiEncoder("s-1", task_id=TASK_ID), chunked=False),
        "ai-sdk": Encoded(AiSdkEncoder(task_id=TASK_ID), chunked=False),
    }
    return {name: _stream(framing) for name, framing in framings.items()}


def _stream(framing: EventFraming) -> str:
    greeting = to_json(_message(_SAID_AT, "connection_ack", _GREETING))
    events = framing.welcome(greeting, CURSOR, _BEGUN_WITHIN_MS) + framing.log(EPOCH, 1, _LOG)
    return events.decode()
