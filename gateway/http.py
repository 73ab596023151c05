"""What the HTTP endpoints have in common: reading a request within limits, answering, and errors."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from backplane.errors import RedisUnavailable
from backplane.log import get_logger, mark_told
from backplane.settings import Settings
from gateway.errors import ClientError, redis_unavailable
from gateway.problem import MEDIA_TYPE, problem_body, problem_headers

Endpoint = Callable[[Request], Awaitable[Response]]

_CODES = {404: "not_found", 405: "method_not_allowed"}


def json_response(data: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(data), status, headers=dict(headers), media_type="application/json")


def json_bytes(content: bytes) -> Response:
    """An answer that is JSON already."""
    return Response(content, media_type="application/json")


def header(request: Request, name: str) -> str | None:
    """A header's value.

    Raises:
        ClientError: 400, it is given twice: two readers could take two values from that.
    """
    given = request.headers.getlist(name)
    if len(given) > 1:
        raise ClientError(400, "bad_request", f"the header {name} is given twice")
    return given[0] if given else None


def query(request: Request) -> dict[str, str]:
    """The query's parameters.

    Raises:
        ClientError: 400, one is given twice.
    """
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ClientError(400, "bad_request", "a query parameter is given twice")
    return found


def bearer_token(request: Request) -> str | None:
    """The token of an ``Authorization: Bearer`` header.

    Raises:
        ClientError: 400, the header is given twice.
    """
    scheme, _, credentials = (header(request, "Authorization") or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" and credentials else None


def problem_response(error: ClientError) -> Response:
    """An answer that says what is wrong (RFC 9457)."""
    body = problem_body(error.status, error.error_code, error.detail, error.limit)
    return Response(body, error.status, headers=dict(problem_headers(error)), media_type=MEDIA_TYPE)


async def read_body(request: Request, settings: Settings) -> bytes:
    """A request's body.

    Raises:
        ClientError: 413 too large, 408 too slow, 415 compressed: what it grows to is not known before.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ClientError(415, "unsupported_encoding", "send the body as it is, without Content-Encoding")
    most, body = settings.message_max_bytes, bytearray()
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise ClientError(413, "message_too_large", f"the body is over the limit of {most} bytes")
    except ClientDisconnect:
        raise ClientError(400, "bad_request", "the body ended before it was whole") from None
    except TimeoutError:
        detail = f"the body did not come within {settings.request_timeout_s:g} s"
        raise ClientError(408, "request_timeout", detail) from None
    return bytes(body)


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
    route = getattr(request.scope.get("route"), "path", None)
    get_logger(process="pod").error("request_failed", route=route, exc_info=error)
    mark_told(error)  # Starlette raises it again for the server, which would tell it a second time
    return problem_response(ClientError(500, "internal_error", "a mistake of ours; it has been logged"))


def exception_handlers(
    refused: Counter[str],
) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Starlette's handlers.

    Args:
        refused: counts what clients are told they may not do, by error code.
    """

    async def on_client_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ClientError)
        refused[error.error_code] += 1
        return problem_response(error)

    return {
        ClientError: on_client_error,
        RedisUnavailable: on_redis_unavailable,
        HTTPException: on_http_exception,
        Exception: on_mistake,
    }
