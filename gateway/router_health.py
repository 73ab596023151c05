"""A router's health over HTTP, where ``ROUTER_PORT`` asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backplane.router.app import Router
from backplane.settings import Settings
from gateway.exposition import Exposition
from gateway.http import exception_handlers, json_response
from gateway.http_protocol import bounded_protocol
from gateway.server import QuietServer, listening_socket


def build_health_app(router: Router) -> Starlette:
    """The application."""

    async def livez(_request: Request) -> Response:
        # Never of Redis: a router that is restarted because Redis is away only adds to the trouble.
        return json_response({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        problem = router.consumer.problem()
        if problem is None:
            return json_response({"status": "ready"})
        return json_response({"status": "not_ready", "reason": problem}, 503)

    async def detailed(_request: Request) -> Response:
        return json_response({"router_id": router.id, "redis": router.redis_shown, **router.summary()})

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/health/detailed", detailed),
        Route("/metrics", Exposition(router.consumer.metrics.registry).endpoint),
    ]
    return Starlette(routes=routes, exception_handlers=exception_handlers(Counter()))


def serve_health(settings: Settings, router: Router) -> dict[str, Coroutine[Any, Any, None]]:
    """The task that serves it, by name; none if the settings ask for none.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    if not settings.router_port:
        return {}
    listening = listening_socket(settings.host, settings.router_port)
    config = uvicorn.Config(
        build_health_app(router),
        ws="none",
        http=bounded_protocol(settings.handshake_timeout_s),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return {"http": QuietServer(config).serve(sockets=[listening])}
