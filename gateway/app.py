"""The pod's HTTP side."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backplane.presence import Summary, living
from gateway.http import EXCEPTION_HANDLERS, json_response
from gateway.pod import Pod
from gateway.send_endpoint import send_endpoint
from gateway.stats_endpoints import chat_stats_endpoint, ws_stats_endpoint


def _trouble(routers: dict[str, Summary]) -> str | None:
    """Why callbacks do not get to the session logs as they should; None if they do."""
    if not routers:
        return "no router lives: callbacks wait in their lists"
    told = {name: summary.get("reason") for name, summary in routers.items()}
    return "; ".join(f"router {name}: {reason}" for name, reason in told.items() if reason) or None


def build_app(pod: Pod) -> Starlette:
    """The application; sockets do not pass through it (see `gateway.connection`)."""

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

    async def detailed(_request: Request) -> Response:
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

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/health/detailed", detailed),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/ws/stats", ws_stats_endpoint(pod)),
            Route("/api/chat/stats", chat_stats_endpoint(pod)),
            Route(
                "/api/chat/send",
                send_endpoint(pod.settings, pod.authenticator, pod.sender),
                methods=["POST"],
            ),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.router.redirect_slashes = False  # an address that is not ours is 404, also with a slash behind it
    return app
