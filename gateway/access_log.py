"""A log event of every HTTP request: what was asked for, and how that went.

The address is told as its route, with the ids that stand in it beside it: what a client writes into one
that is none, or behind one, may be anything, also a token. Sockets do not pass through here.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backplane.keys import is_id
from backplane.log import Logger
from backplane.trace_context import parse_traceparent

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_NAMED = {"X-Tenant-ID": "tenant_id", "X-Session-ID": "session_id"}


class AccessLog:
    """ASGI middleware, outermost.

    Args:
        log: gets an event a request, at its answer's end, or its head's where the transport is handed over.
    """

    def __init__(self, app: ASGIApp, log: Logger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def listen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, listen)
        except Exception:
            status = status or 500  # answered further outside
            raise
        finally:
            duration_ms = round((time.perf_counter() - began) * 1000, 3)
            self._log.info("http_request", status=status, duration_ms=duration_ms, **_about(scope))


def _about(scope: Scope) -> dict[str, str | None]:
    headers, route = Headers(scope=scope), scope.get("route")
    named = {name: headers.get(header) for header, name in _NAMED.items()} | scope.get("path_params", {})
    trace = parse_traceparent(headers.get("traceparent"))
    return {
        "method": scope["method"] if scope["method"] in _METHODS else "other",
        "route": getattr(route, "path", None),
        **{name: value for name, value in named.items() if is_id(value)},
        **({} if trace is None else {"trace_id": trace.trace_id}),
    }
