"""With which statuses and error codes requests are refused.

Each group is what one step of an endpoint may say; an operation has several. A test compares all of them with
what the source raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from backplane.settings import Settings
from gateway.openapi.schemas import Schema, ref
from gateway.problem import MEDIA_TYPE

Refusals = Mapping[int, tuple[str, ...]]

PAGES: Refusals = {403: ("origin_not_allowed",)}
MISTAKE: Refusals = {500: ("internal_error",)}
TOKEN: Refusals = {
    400: ("bad_request",),
    401: ("token_missing", "token_invalid", "token_expired", "token_revoked"),
    403: ("scope_missing",),
    503: ("keys_unavailable", "redis_unavailable"),
}
WHO: Refusals = {400: ("missing_id", "invalid_id", "unknown_tier"), 403: ("forbidden",)}
SESSION: Refusals = {403: ("session_taken",), 503: ("redis_unavailable",)}
QUERY: Refusals = {400: ("bad_request",)}
BODY: Refusals = {
    400: ("bad_request", "not_json"),
    408: ("request_timeout",),
    413: ("message_too_large",),
    415: ("unsupported_encoding",),
    422: ("invalid_field", "not_an_object"),
}
REDIS: Refusals = {503: ("redis_unavailable",)}
TASK: Refusals = {404: ("unknown_task",), **SESSION}
SEND: Refusals = {
    400: ("invalid_field",),
    403: ("session_taken", "agent_forbidden"),
    409: ("idempotency_conflict", "session_busy"),
    429: ("rate_limited", "too_many_tasks"),
    503: ("queue_full", "access_unknown", "redis_unavailable"),
}
INPUT: Refusals = {409: ("input_not_wanted", "input_expired"), 503: ("queue_full",)}
ID: Refusals = {400: ("invalid_id",), 403: ("forbidden",)}
OPERATOR: Refusals = {403: ("forbidden",)}
FIELD: Refusals = {400: ("invalid_field",)}
WHICH: Refusals = {422: ("missing_id", "invalid_id", "invalid_field")}
LIFTING: Refusals = {404: ("not_found",)}
NO_ROOM: Refusals = {503: ("too_many_revocations",)}
METHOD: Refusals = {405: ("method_not_allowed",)}
CURSOR: Refusals = {400: ("invalid_cursor",)}
CONNECTION: Refusals = {
    400: ("invalid_field",),
    429: ("too_many_connections", "rate_limited"),
    503: ("pod_full", "draining", "redis_unavailable"),
}

_OF_TOKENS = frozenset({*TOKEN[401], *TOKEN[403], "keys_unavailable"})
_OF_THE_ACCESS_CHECK = frozenset({"agent_forbidden", "access_unknown"})
_HEADERS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",),
}  # fmt: skip


def refusals(groups: Iterable[Refusals], settings: Settings) -> dict[int, list[str]]:
    """By status the error codes that can occur with these settings."""
    ruled_out: set[str] = set()
    ruled_out |= _OF_TOKENS if settings.auth == "none" else {"origin_not_allowed"}
    ruled_out |= set() if settings.access_check_url else _OF_THE_ACCESS_CHECK
    found: dict[int, dict[str, None]] = {}
    for group in groups:
        for status, codes in group.items():
            found.setdefault(status, {}).update(
                dict.fromkeys(code for code in codes if code not in ruled_out)
            )
    return {status: list(codes) for status, codes in sorted(found.items()) if codes}


def refusal(status: int, codes: list[str], more_headers: tuple[str, ...] = ()) -> Schema:
    """A response of the document.

    Args:
        more_headers: that it has beside those of its status.
    """
    about = {"properties": {"status": {"const": status}, "error_code": {"enum": codes}}}
    names = (*_HEADERS.get(status, ()), *more_headers)
    listed = ", ".join(f"`{code}`" for code in codes)
    response: Schema = {
        "description": f"{HTTPStatus(status).phrase}: {listed}.",
        "content": {MEDIA_TYPE: {"schema": {**ref("Problem"), **about}}},
    }
    if names:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return response
