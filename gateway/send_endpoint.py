"""``POST /api/chat/send``."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from backplane.errors import InvalidId
from backplane.keys import check_id
from backplane.settings import Settings
from backplane.trace_context import read_trace
from gateway.auth import Authenticator
from gateway.chat import CONTEXT_TYPES, Context, decode_body
from gateway.errors import ClientError
from gateway.http import Endpoint, bearer_token, header, json_response, read_body
from gateway.identity import Stated
from gateway.sender import Sender

_NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
_PASSED_ON = ("X-Request-Source", "X-Client-Version", "X-Conversation-ID", "X-User-ID")
MAX_HEADER = 256


def stated(request: Request) -> Stated:
    """What the request's headers say of whom it speaks for."""
    tenant, tier, session, user, agent = (header(request, name) for name in _NAMES)
    return Stated(tenant, tier, session, user, agent, _NAMES)


def context_of(request: Request, agent_id: str) -> Context:
    """Where the message belongs, from the headers.

    Raises:
        ClientError: 400.
    """
    context_type = header(request, "X-Context-Type")
    context_type = "agent" if context_type is None else context_type
    if context_type not in CONTEXT_TYPES:
        detail = f"X-Context-Type must be one of {', '.join(CONTEXT_TYPES)}"
        raise ClientError(400, "invalid_field", detail)
    collection_id = _optional_id(request, "X-Collection-ID")
    if context_type == "collection" and collection_id is None:
        raise ClientError(400, "missing_id", "X-Collection-ID is needed with X-Context-Type: collection")
    passed_on = {"X-Request-Source": "web"}
    for name in _PASSED_ON:
        value = header(request, name)
        if value is not None and len(value) > MAX_HEADER:
            raise ClientError(400, "invalid_field", f"{name} is over {MAX_HEADER} characters")
        if value is not None:
            passed_on[name] = value
    traceparent, tracestate = read_trace(
        ",".join(request.headers.getlist("traceparent")), ",".join(request.headers.getlist("tracestate"))
    )
    return Context(
        agent_id,
        context_type,
        _optional_id(request, "X-Conversation-ID"),
        collection_id,
        traceparent,
        _idempotency_key(request),
        passed_on,
        tracestate,
    )


def send_endpoint(settings: Settings, authenticator: Authenticator, sender: Sender) -> Endpoint:
    """The endpoint."""

    async def send(request: Request) -> Response:
        identity = await authenticator.identify(bearer_token(request), stated(request))
        if identity.agent_id is None:
            raise ClientError(400, "missing_id", "X-Agent-ID is needed")
        context = context_of(request, identity.agent_id)
        body = decode_body(await read_body(request, settings), settings.json_depth_max)
        timeout = header(request, "X-Task-Timeout")
        if timeout is not None:
            if not re.fullmatch(r"[1-9][0-9]{0,6}", timeout):
                raise ClientError(400, "invalid_field", "X-Task-Timeout must be whole seconds from 1")
            body.timeout = int(timeout)
        accepted = await sender.send(identity, context, body)
        return json_response(accepted.answer, headers=accepted.headers)

    return send


def _idempotency_key(request: Request) -> str | None:
    key = header(request, "Idempotency-Key")
    if key is not None and not 1 <= len(key) <= MAX_HEADER:
        detail = f"Idempotency-Key must be 1 to {MAX_HEADER} characters"
        raise ClientError(400, "invalid_field", detail)
    return key


def _optional_id(request: Request, name: str) -> str | None:
    value = header(request, name)
    if value is None:
        return None
    try:
        return check_id(value, name)
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None
