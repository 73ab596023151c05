"""What the HTTP endpoints have in common: reading a request within limits, answering, and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from backplane.errors import RedisUnavailable
from backplane.log import get_logger
from gateway.errors import ClientError, redis_unavailable
from gateway.problem import MEDIA_TYPE, problem_body, problem_headers

Endpoint = Callable[[Request], Awaitable[Response]]

_CODES = {404: "not_found", 405: "method_not_allowed"}


def json_response(data: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def problem_response(error: ClientError) -> Response:
    """An answer that says what is wrong (RFC 9457)."""
    body = problem_body(error.status, error.error_code, error.detail)
    return Response(body, error.status, headers=dict(problem_headers(error)), media_type=MEDIA_TYPE)


async def read_body(request: Request, most: int) -> bytes:
    """A request's body.

    Args:
        most: bytes it may have.

    Raises:
        ClientError: 413.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise ClientError(413, "message_too_large", f"the body is over the limit of {most} bytes")
    return bytes(body)


async def on_client_error(_request: Request, error: Exception) -> Response:
    """Starlette's handler for `ClientError`."""
    assert isinstance(error, ClientError)
    return problem_response(error)


async def on_redis_unavailable(_request: Request, _error: Exception) -> Response:
    """Starlette's handler for endpoints that read Redis while it is away."""
    return problem_response(redis_unavailable())


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's handler for its own errors (no such path, wrong method)."""
    assert isinstance(error, HTTPException)
    problem = ClientError(error.status_code, _CODES.get(error.status_code, "bad_request"), error.detail)
    response = problem_response(problem)
    response.headers.update(error.headers or {})
    return response


async def on_mistake(request: Request, error: Exception) -> Response:
    """Starlette's handler for what nobody expected; the traceback goes to the log, not to the client."""
    get_logger(process="pod").error("request_failed", path=request.url.path, exc_info=error)
    return problem_response(ClientError(500, "internal_error", "a mistake of ours; it has been logged"))


EXCEPTION_HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ClientError: on_client_error,
    RedisUnavailable: on_redis_unavailable,
    HTTPException: on_http_exception,
    Exception: on_mistake,
}
