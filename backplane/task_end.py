"""What is said to the AES and to clients of a task that runs, and how it ends if the AES does not end it: [P]
pure."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec

from backplane.appending import Entry
from backplane.messages import Message, timestamp, to_entry
from backplane.trace_context import metadata

_TEXTS = {
    "timeout": ("The agent did not finish in time.", "agent_timeout"),
    "cancelled": ("The task was cancelled.", "cancelled"),
}


def end_entry(
    status: str,
    task_id: str,
    session_id: str,
    tenant_id: str,
    tier: str,
    why: str,
    now: float,
    traceparent: str | None = None,
) -> Entry:
    """The last message of a task.

    Args:
        status: ``timeout`` or ``cancelled``.
        why: what it was cancelled for; goes into ``metadata``.
        now: seconds since 1970.
    """
    text, code = _TEXTS[status]
    data = {
        "error": text,
        "error_code": code,
        "error_type": None,
        "task_id": task_id,
        "status": status,
        "retryable": status == "timeout",
        "metadata": {"reason": why} if why else {},
    }
    trace = metadata(traceparent)
    message = Message(timestamp(now), "error", task_id, session_id, tenant_id, tier or None, data, trace)
    digest = blake2b(f"end\0{task_id}\0{status}".encode(), digest_size=12).digest()
    return Entry(session_id, digest, to_entry(message), "t", task_id, status)


def cancel_action(
    action_id: UUID,
    task_id: str,
    session_id: str,
    tenant_id: str,
    tier: str,
    agent_id: str,
    context: str,
    queue_name: str,
    callback_queue: str,
    reason: str,
    now: float,
    traceparent: str | None = None,
) -> bytes:
    """The ``chat.cancel`` action of the contract, section 1, as JSON.

    Args:
        context: the ``context_id`` of the action that it cancels.
        now: seconds since 1970.
    """
    trace = metadata(traceparent)
    base = _base(
        task_id, session_id, tenant_id, tier, agent_id, context, queue_name, callback_queue, now, trace
    )
    more = {"action_id": str(action_id), "action_type": "chat.cancel", "data": {}, "reason": reason}
    return msgspec.json.encode({**base, **more})


def input_action(
    action_id: UUID,
    task_id: str,
    session_id: str,
    tenant_id: str,
    tier: str,
    agent_id: str,
    context: str,
    queue_name: str,
    callback_queue: str,
    input_id: str,
    value: Any,
    now: float,
    traceparent: str | None = None,
) -> bytes:
    """The ``execution.input`` action: what a user answers to what his agent has asked him; as JSON.

    Args:
        context: and ``now`` as of `cancel_action`.
        value: JSON values, or `msgspec.Raw`.
    """
    trace = metadata(traceparent)
    base = _base(
        task_id, session_id, tenant_id, tier, agent_id, context, queue_name, callback_queue, now, trace
    )
    data = {"input_id": input_id, "value": value}
    more = {"action_id": str(action_id), "action_type": "execution.input", "data": data}
    return msgspec.json.encode({**base, **more})


def input_entry(
    task_id: str,
    session_id: str,
    tenant_id: str,
    tier: str,
    input_id: str,
    now: float,
    traceparent: str | None = None,
) -> Entry:
    """That what an agent asked has been answered, for all of the session's devices.

    Args:
        now: seconds since 1970.
    """
    data = {
        "task_id": task_id, "status": "working", "step": "input_received", "message": None, "progress": None,
        "tool": None, "input_id": input_id,
    }  # fmt: skip
    trace = metadata(traceparent)
    message = Message(
        timestamp(now), "task_update", task_id, session_id, tenant_id, tier or None, data, trace
    )
    digest = blake2b(f"input\0{task_id}\0{input_id}".encode(), digest_size=12).digest()
    return Entry(session_id, digest, to_entry(message), "p", task_id, "working")


def restarted(action: str, now: float, deadline: float) -> bytes:
    """An action that has waited, as it is pushed now.

    Args:
        now: seconds since 1970.
        deadline: likewise.
    """
    fields = msgspec.json.decode(action)
    fields["timeout"] = max(1, round(deadline - now))
    fields["deadline_at"] = datetime.fromtimestamp(deadline, UTC).isoformat()
    fields["queue_metadata"]["enqueued_at"] = datetime.fromtimestamp(now, UTC).isoformat()
    return msgspec.json.encode(fields)


def _base(
    task_id: str,
    session_id: str,
    tenant_id: str,
    tier: str,
    agent_id: str,
    context: str,
    queue_name: str,
    callback_queue: str,
    now: float,
    trace: dict[str, Any],
) -> dict[str, Any]:
    at = datetime.fromtimestamp(now, UTC).isoformat()
    base = {"tenant_id": tenant_id, "tenant_tier": tier, "session_id": session_id}
    return {
        "task_id": task_id,
        **base,
        "execution_context": {
            "context_id": context,
            "context_type": context.partition("-")[0],
            **base,
            "primary_agent_id": agent_id,
            "agents": [agent_id],
            "collections": [],
            "metadata": {},
            "created_at": at,
        },
        "metadata": {"headers": {}, "created_at": at, **trace},
        "callback_queue": callback_queue,
        "queue_metadata": {"enqueued_at": at, "target_domain": "execution", "queue_name": queue_name},
        "timestamp": at,
    }
