"""A chat message on its way up: checked, and made into the action that the AES takes: [P] pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec

from backplane.messages import Message, timestamp, to_entry
from backplane.settings import Settings
from backplane.trace_context import metadata
from gateway.errors import ClientError
from gateway.identity import Identity

CONTEXT_TYPES = ("agent", "workflow", "collection")


class ChatBody(msgspec.Struct, forbid_unknown_fields=False):
    """What a client sends; the same over HTTP and on a socket."""

    message: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
    message_type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "text"
    user_info: dict[str, Any] = {}
    max_iterations: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    client_message_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    busy_policy: Literal["concurrent", "reject", "enqueue", "interrupt"] | None = None
    cancel_if_left_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] | None = None
    timeout: Annotated[int, msgspec.Meta(ge=1)] | None = None
    agent_id: str | None = None


class Context(NamedTuple):
    """Where a chat message belongs, beside its identity.

    Attributes:
        traceparent: valid; the client's.
        headers: what is passed on to the AES as ``metadata.headers``.
        tracestate: valid; the client's.
    """

    agent_id: str
    context_type: str = "agent"
    conversation_id: str | None = None
    collection_id: str | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    headers: dict[str, str] = {}  # noqa: RUF012  # a NamedTuple's default; never written to
    tracestate: str | None = None


def check_depth(raw: bytes, most: int) -> None:
    """Refuse JSON that is nested too deeply: whoever reads it after us may do so with a stack.

    Raises:
        ClientError: 422.
    """
    if raw.count(b"[") + raw.count(b"{") <= most:
        return
    depth = 0
    for match in _STRUCTURE.finditer(raw):
        sign = match[0]
        depth += (sign in b"[{") - (sign in b"]}")
        if depth > most:
            raise ClientError(422, "invalid_field", f"the JSON is nested deeper than {most} levels")


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def decode_body(raw: bytes, depth: int = 32) -> ChatBody:
    """Read a chat message.

    Args:
        depth: levels of nesting that it may have.

    Raises:
        ClientError: 400 not JSON, 422 a field is wrong.
    """
    check_depth(raw, depth)
    try:
        return _decode(raw)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None


_decode = msgspec.json.Decoder(ChatBody).decode


def invalid_field(error: msgspec.ValidationError) -> ClientError:
    """msgspec's complaint in a client's words."""
    text = str(error).replace("Expected `object`", "Expected an object")
    if text.startswith("Expected an object, got") and "$" not in text:
        return ClientError(422, "not_an_object", f"the message must be a JSON object: {text}")
    return ClientError(422, "invalid_field", text)


def timeout_s(settings: Settings, tier: str, asked: int | None) -> int:
    """The time that the agent has: what was asked for, at most the tier's (whole seconds)."""
    most = settings.for_tier("task_timeout_s", tier)
    return most if asked is None else min(asked, most)


def context_id(context: Context) -> str:
    """What the action's ``execution_context`` is about."""
    subject = context.collection_id if context.context_type == "collection" else context.agent_id
    return f"{context.context_type}-{subject}"


def fingerprint(context: Context, body: ChatBody) -> str:
    """Of what is sent: two that differ may not be sent under one ``Idempotency-Key``."""
    about = (context_id(context), context.agent_id, context.collection_id)
    said = (body.message, body.message_type, body.user_info, body.max_iterations, about)
    return blake2b(msgspec.json.encode(said, order="sorted"), digest_size=16).hexdigest()


def question_entry(
    identity: Identity,
    context: Context,
    body: ChatBody,
    task_id: str,
    now: float,
    traceparent: str | None = None,
) -> bytes:
    """What a user says, as an entry of the session's log: for the others of his devices.

    Args:
        now: seconds since 1970.
        traceparent: valid; of its task.
    """
    data = {
        "task_id": task_id,
        "message": body.message,
        "message_type": body.message_type,
        "client_message_id": body.client_message_id,
        "user_id": identity.user_id,
        "agent_id": context.agent_id,
    }
    return to_entry(
        Message(
            timestamp(now), "user_message", task_id, identity.session_id, identity.tenant_id,
            identity.tenant_tier, data, metadata(traceparent),
        )
    )  # fmt: skip


def build_action(
    settings: Settings,
    identity: Identity,
    context: Context,
    body: ChatBody,
    *,
    task_id: str,
    action_id: UUID,
    queue_name: str,
    callback_queue: str,
    now: float,
    deadline: float,
    traceparent: str | None = None,
) -> bytes:
    """The ``ChatProcessAction`` of the contract, section 1, as JSON.

    Args:
        now: seconds since 1970.
        deadline: likewise.
        traceparent: of the task.
    """
    at = datetime.fromtimestamp(now, UTC).isoformat()
    tier = identity.tenant_tier
    extra = {
        "conversation_id": context.conversation_id,
        "client_message_id": body.client_message_id,
        "traceparent": traceparent,
        "tracestate": context.tracestate,
        "user_id": identity.user_id,
    }
    base = {"tenant_id": identity.tenant_id, "tenant_tier": tier, "session_id": identity.session_id}
    return msgspec.json.encode(
        {
            "action_id": str(action_id),
            "action_type": "execution.agent_run",
            "task_id": task_id,
            **base,
            "execution_context": {
                "context_id": context_id(context),
                "context_type": context.context_type,
                **base,
                "primary_agent_id": context.agent_id,
                "agents": [context.agent_id],
                "collections": [] if context.collection_id is None else [context.collection_id],
                "metadata": {},
                "created_at": at,
            },
            "data": {},
            "metadata": {
                "headers": context.headers,
                "created_at": at,
                **{name: value for name, value in extra.items() if value is not None},
            },
            "callback_queue": callback_queue,
            "timeout": max(1, round(deadline - now)),
            "deadline_at": datetime.fromtimestamp(deadline, UTC).isoformat(),
            "queue_metadata": {
                "enqueued_at": at,
                "target_domain": "execution",
                "queue_name": queue_name,
                "tier_priority": settings.for_tier("queue_priority", tier),
            },
            "timestamp": at,
            "message": body.message,
            "message_type": body.message_type,
            "user_info": body.user_info,
            "max_iterations": body.max_iterations,
        }
    )
