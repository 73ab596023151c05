"""Errors over HTTP: ``application/problem+json`` (RFC 9457): [P] pure."""

from __future__ import annotations

from http import HTTPStatus
from math import ceil

import msgspec

from gateway.errors import ClientError

MEDIA_TYPE = "application/problem+json"


def problem_body(status: int, error_code: str, detail: str, limit: str | None = None) -> bytes:
    """A problem document.

    Args:
        limit: the name of the limit that was reached, if it was one.
    """
    title = HTTPStatus(status).phrase
    problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return msgspec.json.encode(
        problem | {"error_code": error_code} | ({} if limit is None else {"limit": limit})
    )


def problem_headers(error: ClientError) -> list[tuple[str, str]]:
    """The headers that go with an error, beside its media type."""
    headers = list(error.headers)
    if error.retry_after_s is not None:
        headers.append(
            ("Retry-After", str(max(1, ceil(error.retry_after_s))))
        )  # RFC 9110, 10.2.3: whole seconds
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return headers
