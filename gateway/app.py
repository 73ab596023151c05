"""The pod's HTTP side: an application for clients, and one for operators who want a port of their own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from backplane.log import get_logger
from backplane.presence import Summary, living
from gateway.access_log import AccessLog
from gateway.admin_endpoints import AdminEndpoints
from gateway.broadcast_endpoint import broadcast_endpoint
from gateway.errors import ClientError
from gateway.events_endpoint import events_routes
from gateway.exposition import Exposition
from gateway.http import Endpoint, bearer_token, exception_handlers, json_response, problem_response
from gateway.http_metrics import CountedRequests
from gateway.identity import check_scope
from gateway.messages_endpoint import messages_endpoint
from gateway.openapi.document import openapi_route
from gateway.pod import Pod
from gateway.send_endpoint import send_endpoint
from gateway.stats_endpoints import chat_stats_endpoint, ws_stats_endpoint
from gateway.task_endpoints import task_routes


def _trouble(routers: dict[str, Summary]) -> str | None:
    """Why callbacks do not get to the session logs as they should; None if they do."""
    if not routers:
        return "no router lives: callbacks wait in their lists"
    told = {name: summary.get("reason") for name, summary in routers.items()}
    return "; ".join(f"router {name}: {reason}" for name, reason in told.items() if reason) or None


_CORS_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "traceparent", "tracestate",
    "X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID", "X-Context-Type",
    "X-Conversation-ID", "X-Collection-ID", "X-Request-Source", "X-Client-Version", "X-Task-Timeout",
)  # fmt: skip
_CORS_EXPOSED = ("Retry-After", "RateLimit", "RateLimit-Policy", "WWW-Authenticate")
_CORS_MAX_AGE_S = 600


def build_app(pod: Pod) -> Starlette:
    """The application for clients; sockets do not pass through it (see `gateway.connection`)."""
    routes = [
        *_health_routes(pod),
        Route("/api/chat/send", send_endpoint(pod.settings, pod.authenticator, pod.sender), methods=["POST"]),
    ]
    routes.append(Route("/api/chat/sessions/{session_id}/messages", messages_endpoint(pod)))
    routes += task_routes(pod)
    routes.append(Route("/api/broadcast", broadcast_endpoint(pod), methods=["POST"]))
    routes += events_routes(pod)
    if not pod.settings.admin_port:
        routes += _operators_routes(pod)
    return _app(pod, routes)


def build_admin_app(pod: Pod) -> Starlette:
    """The application at ``ADMIN_PORT``."""
    return _app(pod, [*_health_routes(pod), *_operators_routes(pod)])


_HARMLESS = ("/health", "/livez", "/readyz")  # asked by load balancers, under any name


class _LocalPages:
    """Without tokens, web pages of others may not use the service through a browser on this machine."""

    def __init__(self, app: ASGIApp, pod: Pod) -> None:
        self._app = app
        self._pod = pod

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _HARMLESS:
            headers = Headers(scope=scope)
            if not self._pod.origins.allows_request(headers.get("origin"), headers.get("host")):
                detail = "without tokens, only pages and names of this machine may use the service"
                self._pod.refused["origin_not_allowed"] += 1
                await problem_response(ClientError(403, "origin_not_allowed", detail))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _app(pod: Pod, routes: list[Route]) -> Starlette:
    routes = [*routes, openapi_route(pod.settings, routes)]
    middleware = [Middleware(CountedRequests, metrics=pod.metrics)]
    if pod.settings.access_log:
        middleware.append(Middleware(AccessLog, log=get_logger(process="pod", pod_id=pod.id)))
    if pod.settings.auth == "none":
        middleware.append(Middleware(_LocalPages, pod=pod))
    if pod.origins.pattern is not None:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origin_regex=pod.origins.pattern,
                allow_methods=("GET", "POST", "PUT", "DELETE"),
                allow_headers=_CORS_HEADERS,
                expose_headers=_CORS_EXPOSED,
                max_age=_CORS_MAX_AGE_S,
            )
        )
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=exception_handlers(pod.refused))
    app.router.redirect_slashes = False  # an address that is not ours is 404, also with a slash behind it
    return app


def _operators_routes(pod: Pod) -> list[Route]:
    return [
        Route("/health/detailed", _detailed(pod)),
        Route("/ws/stats", ws_stats_endpoint(pod)),
        Route("/api/chat/stats", chat_stats_endpoint(pod)),
        Route("/metrics", _metrics(pod)),
        *AdminEndpoints(pod).routes(),
    ]


def _metrics(pod: Pod) -> Endpoint:
    exposition = Exposition(pod.metrics.registry)

    async def metrics(request: Request) -> Response:
        # At a port of its own the network says who may read it; among clients, a token does.
        if not pod.settings.admin_port:
            check_scope(await pod.authenticator.grant(bearer_token(request)), "stats")
        return await exposition.endpoint(request)

    return metrics


def _health_routes(pod: Pod) -> list[Route]:
    async def health(_request: Request) -> Response:
        return json_response({"status": "ok", "service": "agent_orchestrator"})

    async def livez(_request: Request) -> Response:
        # Never of Redis: a pod that is restarted because Redis is away only adds to the trouble.
        return json_response({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        problem = pod.health.problem()
        if problem is None:
            impairment = pod.health.impairment()
            return json_response({"status": "ready"} | ({"impaired": impairment} if impairment else {}))
        return json_response({"status": "not_ready", "reason": problem}, 503)

    return [Route("/health", health), Route("/livez", livez), Route("/readyz", readyz)]


def _detailed(pod: Pod) -> Endpoint:
    async def detailed(request: Request) -> Response:
        check_scope(await pod.authenticator.grant(bearer_token(request)), "stats")
        problem = pod.health.problem() or pod.health.impairment()
        redis = pod.commands.up and pod.feed.up
        routers = await living(pod.commands, pod.keys, "routers") if redis else None
        trouble = None if routers is None else _trouble(routers)
        round_trip_s = pod.health.probes.round_trip_s
        return json_response(
            {
                "status": "ok" if problem is None and trouble is None else "degraded",
                "service": "agent_orchestrator",
                "ready": pod.health.problem() is None,
                "reason": problem or trouble,
                "redis": {
                    "address": pod.redis_shown,
                    "connected": redis,
                    "probe_round_trip_ms": None if round_trip_s is None else round(round_trip_s * 1000, 3),
                },
                "routers": None if routers is None else len(routers),
                "pod": {"pod_id": pod.id, **pod.summary()},
            }
        )

    return detailed
