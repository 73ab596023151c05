"""``GET /openapi.json``: what a port answers, as an OpenAPI 3.1 document. Made once, of its routes.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backplane.settings import Settings
from gateway.admin_endpoints import LIMIT_MAX, NUMERIC_LIMITS, CloseBody, LogLevelBody, RevocationBody
from gateway.broadcast_endpoint import BroadcastBody
from gateway.chat import ChatBody
from gateway.encoders.inbound import ChatRequest, RunAgentInput
from gateway.http_protocol import MAX_HEAD_BYTES
from gateway.openapi.clients import clients
from gateway.openapi.operation import JSON, describe
from gateway.openapi.operators import operators
from gateway.openapi.schemas import REF, Schema, schemas
from gateway.task_endpoints import CancelBody, InputBody, NamedCancelBody

PATH = "/openapi.json"
_TITLE = "Agent Orchestrator"
_MAX_AGE_S = 300  # what changes it is a restart
_BODIES = (
    ChatBody, CancelBody, NamedCancelBody, InputBody, BroadcastBody, RunAgentInput, ChatRequest, CloseBody,
    RevocationBody, LogLevelBody,
)  # fmt: skip

_ABOUT = """Between people and AI agents: sends become tasks, and what agents say comes over the session's
sockets and event streams, in order, each message once, on any pod.

- Ids have 1 to 128 characters of `A-Z a-z 0-9 . _ ~ -`, a user's also `@ +`.
- A body has at most {message_max_bytes} bytes and {json_depth_max} levels, comes within
  {request_timeout_s:g} s, and is not compressed; a request's head has at most {head} bytes.
- Whole numbers are written without a point.
- A header or query parameter that is given twice is refused.
- Errors are problem documents. Any other address is 404 (`not_found`), any other method 405.
- `HEAD` is answered where `GET` is, but for event streams.
- The scopes that a token needs stand in each operation's `security`."""

_SOCKETS = {
    "path": "/ws/{session_id}",
    "description": "The WebSocket, which OpenAPI cannot describe. It tells what event streams tell, and "
    "takes chat, cancel, input, subscribe, unsubscribe, ack, auth, ping and pong.",
    "documentation": "docs/clients.md#open-a-socket",
}

_HEADERS: Schema = {
    "Retry-After": (True, "integer", "Seconds after which it may be tried again."),
    "WWW-Authenticate": (True, "string", "`Bearer`."),
    "Allow": (True, "string", "The methods that there are."),
    "RateLimit-Policy": (False, "string", "Limits: `q` in `w` seconds. Left out where nothing is limited."),
    "RateLimit": (False, "string", "What is left (`r`), and in how many seconds it is whole again (`t`)."),
    "ETag": (True, "string", "Of this document."),
    "Cache-Control": (True, "string", "For how long it may be kept."),
}


def document(settings: Settings, routes: Sequence[Route]) -> Schema:
    """The document.

    Args:
        routes: what it describes.

    Raises:
        KeyError: one of them is not known here.
    """
    known = {**clients(settings), **operators(settings)}
    paths: dict[str, Schema] = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            told = describe(known[method, route.path], route.path, settings)
            paths.setdefault(route.path, {})[method.lower()] = told
    about = _ABOUT.format(
        message_max_bytes=settings.message_max_bytes,
        json_depth_max=settings.json_depth_max,
        request_timeout_s=settings.request_timeout_s,
        head=MAX_HEAD_BYTES,
    )
    sockets = {"x-websocket": _SOCKETS} if "/api/chat/send" in paths else {}
    return {
        "openapi": "3.1.1",
        "info": {"title": _TITLE, "version": version("agent-orchestrator"), "description": about},
        "servers": [{"url": "/"}],
        **sockets,
        "paths": paths,
        "components": _components(settings, paths),
    }


def openapi_route(settings: Settings, others: Sequence[Route]) -> Route:
    """The route of the document of these and of itself; needs no token."""

    async def openapi(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in [one.strip().removeprefix("W/") for one in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=JSON)

    route = Route(PATH, openapi)
    content = msgspec.json.encode(document(settings, [*others, route]))
    tag = f'"{blake2b(content, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": f"public, max-age={_MAX_AGE_S}"}
    return route


def _components(settings: Settings, paths: Schema) -> Schema:
    headers = {
        name: {"required": required, "description": description, "schema": {"type": kind}}
        for name, (required, kind, description) in _HEADERS.items()
    }
    known = schemas(_BODIES, NUMERIC_LIMITS, LIMIT_MAX)
    components: Schema = {"schemas": _named_in(paths, known)}
    components["headers"] = headers
    if settings.auth != "none":
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _TOKEN},
            "query_token": {"type": "apiKey", "in": "query", "name": "token", "description": _QUERY_TOKEN},
        }
    return components


def _named_in(told: Schema, known: Schema) -> Schema:
    """The schemas to which something refers, and those to which they do."""
    found: dict[str, None] = {}
    todo = [told]
    while todo:
        names = re.findall(rf"{REF.format(name='')}(\w+)", msgspec.json.encode(todo.pop()).decode())
        new = [name for name in dict.fromkeys(names) if name not in found]
        found.update(dict.fromkeys(new))
        todo += [known[name] for name in new]
    return {name: schema for name, schema in known.items() if name in found}


_TOKEN = "A JSON Web Token. What it says of tenant, tier, user and session stands, and need not be given."
_QUERY_TOKEN = "The same token, for an `EventSource`, which cannot set headers."
