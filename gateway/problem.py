"""Errors over HTTP: ``application/problem+json`` (RFC 9457): [P] pure."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from gateway.errors import ClientError

MEDIA_TYPE = "application/problem+json"


def problem_body(status: int, error_code: str, detail: str) -> bytes:
    """A problem document."""
    title = HTTPStatus(status).phrase
    return msgspec.json.encode(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, "error_code": error_code}
    )


def problem_headers(error: ClientError) -> list[tuple[str, str]]:
    """The headers that go with an error, beside its media type."""
    headers = []
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(error.retry_after_s)))
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return headers
