"""What a request for an event stream asks for: who, from where on, and in whose words.

A browser's ``EventSource`` sets no headers, so whatever a header says may stand in the query instead. Where
both are given they have to agree, with one exception: an EventSource that comes back asks for the address
that it was given, with the cursor of then, and says in ``Last-Event-ID`` what it has now: the header counts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.ai_sdk import AiSdkEncoder
from gateway.encoders.event_id import EventId, parse_event_id
from gateway.errors import ClientError
from gateway.http import bearer_token, header, query
from gateway.identity import Stated

Format = Literal["native", "ag-ui", "ai-sdk"]

FORMATS: dict[str, Format] = {"native": "native", AgUiEncoder.name: "ag-ui", AiSdkEncoder.name: "ai-sdk"}
_MEDIA_TYPE = "text/event-stream"
_NAMES = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")


class EventRequest(NamedTuple):
    """A request for an event stream.

    Attributes:
        version: of the client that reads the format; empty if it is not told.
        last: what the client has; None for nothing.
        task_id: the only task that it wants to know of; not checked yet.
        chunks: it wants answers while they are streamed.
        have: what it has of such, as it says it; not read yet.
        chunked: whether the response may be (RFC 9112, 7.1).
        forwarded: its ``X-Forwarded-For``.
    """

    token: str | None
    stated: Stated
    format: Format
    version: str
    last: EventId | None
    task_id: str | None
    chunks: bool
    have: str | None
    chunked: bool
    forwarded: str | None


def read_request(request: Request) -> EventRequest:
    """Read it; what is in its body is not looked at.

    Raises:
        ClientError: 400.
        HTTPException: 405.
    """
    given = query(request)
    chosen, version = _format(request, given)
    native = chosen == "native"
    if request.method not in ("GET", "POST") or (native and request.method == "POST"):
        raise HTTPException(405, headers={"Allow": "GET" if native else "GET, POST"})
    return EventRequest(
        token=_either(bearer_token(request), given.get("token"), "token"),
        stated=_stated(request, given),
        format=chosen,
        version=version,
        last=_last(request, given),
        task_id=given.get("task_id"),
        chunks=not native or given.get("stream") == "1",
        have=given.get("have"),
        chunked=request.scope["http_version"] != "1.0",
        forwarded=", ".join(request.headers.getlist("x-forwarded-for")) or None,
    )


def _stated(request: Request, given: dict[str, str]) -> Stated:
    tenant, tier, user, agent = (
        _either(header(request, f"X-{name}"), given.get(parameter), parameter)
        for name, parameter in (
            ("Tenant-ID", "tenant_id"), ("Tenant-Tier", "tenant_tier"), ("User-ID", "user_id"),
            ("Agent-ID", "agent_id"),
        )
    )  # fmt: skip
    return Stated(tenant, tier, request.path_params["session_id"], user, agent, _NAMES)


def _either(one: str | None, other: str | None, name: str) -> str | None:
    if one is not None and other is not None and one != other:
        raise ClientError(400, "bad_request", f"{name} is given twice, and not the same; give it once")
    return other if one is None else one


def _last(request: Request, given: dict[str, str]) -> EventId | None:
    asked = _either(given.get("cursor") or None, given.get("last_event_id") or None, "the cursor")
    text = header(request, "Last-Event-ID") or asked
    try:
        return parse_event_id(text) if text else None
    except ValueError as error:
        raise ClientError(400, "invalid_cursor", str(error)) from None


def _format(request: Request, given: dict[str, str]) -> tuple[Format, str]:
    """The format and the client's version: from the query, else from ``Accept``."""
    if "chat_id" in request.path_params:
        return "ai-sdk", given.get("v") or _accepted(request).get("v", "")
    if "format" not in given:
        accepted = _accepted(request)
        return FORMATS.get(accepted.get("format", ""), "native"), accepted.get("v", "")
    chosen = FORMATS.get(given["format"])
    if chosen is None:
        raise ClientError(400, "bad_request", f"format must be one of {', '.join(FORMATS)}")
    return chosen, given.get("v", "")


def _accepted(request: Request) -> dict[str, str]:
    """The parameters of the first event stream that ``Accept`` names with some (RFC 9110, 12.5.1)."""
    for one in ",".join(request.headers.getlist("accept")).split(","):
        media_type, *parameters = one.split(";")
        pairs = [parameter.partition("=") for parameter in parameters]
        found = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
        if media_type.strip().lower() == _MEDIA_TYPE and "format" in found:
            return found
    return {}
