"""Counts the HTTP requests of a pod, by route; sockets do not pass through it."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics import PodMetrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class CountedRequests:
    """An ASGI application around another one.

    Args:
        metrics: what is told of each request.
    """

    def __init__(self, app: ASGIApp, metrics: PodMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answered = time.monotonic(), False

        async def count(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._count(scope, message["status"], time.monotonic() - began)
            await send(message)

        try:
            await self._app(scope, receive, count)
        except Exception:
            if not answered:  # the answer to a mistake of ours is made further out
                self._count(scope, 500, time.monotonic() - began)
            raise

    def _count(self, scope: Scope, status: int, took_s: float) -> None:
        # Never the address as it came: clients choose that, and each would be a time series.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.http_requests.of(route, method, str(status)).value += 1
        self._metrics.http_duration.of(route).observe(took_s)
