"""Headers, queries and parts of paths."""

from __future__ import annotations

from typing import Literal

from gateway.admin_endpoints import MOST_LISTED, TOKEN_ID
from gateway.chat import CONTEXT_TYPES
from gateway.event_request import FORMATS
from gateway.openapi.schemas import REVOKED_TENANT, Schema, ref
from gateway.send_endpoint import MAX_HEADER

_TOKEN_WINS = "The token's counts; leave it out, or give the same."
_SHORT = {"type": "string", "maxLength": MAX_HEADER}

_PARAMETERS: dict[str, tuple[Schema, str]] = {
    # Who.
    "X-Tenant-ID": (ref("Id"), f"The tenant. {_TOKEN_WINS}"),
    "X-Tenant-Tier": (ref("Tier"), f"The tier. {_TOKEN_WINS}"),
    "X-Session-ID": (ref("Id"), "The session. Needed unless the token names exactly one."),
    "X-User-ID": (ref("UserId"), f"The user. {_TOKEN_WINS}"),
    "X-Agent-ID": (ref("Id"), "The agent."),
    "tenant_id": (ref("Id"), f"The tenant. {_TOKEN_WINS}"),
    "tenant_tier": (ref("Tier"), f"The tier. {_TOKEN_WINS}"),
    "session_id": (ref("Id"), "The session."),
    "user_id": (ref("UserId"), "The user."),
    "agent_id": (ref("Id"), "The agent."),
    "task_id": (ref("Id"), "The task, as the answer to a send named it."),
    # A message.
    "X-Context-Type": ({"enum": list(CONTEXT_TYPES), "default": CONTEXT_TYPES[0]}, "What it is about."),
    "X-Conversation-ID": (ref("Id"), "Passed on to the agent."),
    "X-Collection-ID": (ref("Id"), "Needed with `X-Context-Type: collection`."),
    "X-Request-Source": ({**_SHORT, "default": "web"}, "Passed on to the agent."),
    "X-Client-Version": (_SHORT, "Passed on to the agent."),
    "X-Task-Timeout": (
        {"type": "integer", "minimum": 1, "maximum": 9_999_999},
        "Seconds that the agent has; at most the tier's. It counts, not the body's `timeout`.",
    ),
    "Idempotency-Key": (
        {**_SHORT, "minLength": 1},
        "Your name for the message: what is sent again under it is the same task.",
    ),
    "traceparent": ({"type": "string"}, "W3C Trace Context; one that is not valid is ignored."),
    "tracestate": ({"type": "string"}, "W3C Trace Context; passed on with a traceparent, if it is valid."),
    # Event streams.
    "cursor": (ref("Cursor"), "What you have: what follows is told."),
    "events.cursor": ({"type": "string"}, "What you have: a position, or the `id:` of an event."),
    "last_event_id": ({"type": "string"}, "As `Last-Event-ID`, which counts where both are given."),
    "Last-Event-ID": ({"type": "string"}, "The `id:` of the last event that you have. Browsers send it."),
    "format": (
        {"enum": list(FORMATS), "default": "native"},
        "In whose words. `Accept: text/event-stream;format=…` says it as well.",
    ),
    "v": ({"type": "string"}, "`7` for `ai` 7, with `format=ai-sdk`."),
    "stream": ({"enum": ["1"]}, "`1`: answers come in pieces too, while they are made."),
    "have": (
        {"type": "string"},
        "What you have of answers, with `stream=1`: `task_id:attempt:text:reasoning` (characters), …",
    ),
    "chat_id": ({"type": "string"}, "What the client calls its chat; of no meaning here."),
    # Operators.
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": 100},
        "How many at most.",
    ),
    "token_id": ({"type": "string", "pattern": f"^{TOKEN_ID.pattern}$"}, "The token's `jti`."),
    "revoked.tenant_id": (REVOKED_TENANT, "The tenant; alone, all of its tokens. `*`: operators."),
    "If-None-Match": ({"type": "string"}, "The `ETag` of the document that you have."),
}  # fmt: skip


def parameter(name: str, where: Literal["path", "query", "header"], needed: bool) -> Schema:
    """A parameter object.

    Args:
        name: after a dot, if another operation has one of that name that means something else.
    """
    schema, description = _PARAMETERS[name]
    name = name.rpartition(".")[2]
    return {"name": name, "in": where, "required": needed, "description": description, "schema": schema}
