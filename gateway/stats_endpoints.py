"""``/ws/stats`` and ``/api/chat/stats``: for the whole cluster, from what its processes say of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from backplane.errors import InvalidId
from backplane.keys import TIERS, check_id
from backplane.ownership import tenant_connections
from backplane.presence import Summary, living
from gateway.errors import ClientError
from gateway.http import Endpoint, json_response
from gateway.pod import Pod


def ws_stats_endpoint(pod: Pod) -> Endpoint:
    """``GET /ws/stats``; with ``?tenant_id=`` the connections of one tenant."""

    async def ws_stats(request: Request) -> Response:
        pods = await _pods(pod)
        tenant_id = request.query_params.get("tenant_id")
        if tenant_id is not None:
            return json_response(await _of_tenant(pod, sorted(pods), tenant_id))
        return json_response(
            {
                "connections": sum(summary["connections"] for summary in pods.values()),
                "pods": [{"pod_id": pod_id, **summary} for pod_id, summary in sorted(pods.items())],
                "answered_by": pod.id,
            }
        )

    return ws_stats


async def _pods(pod: Pod) -> dict[str, Summary]:
    """What the pods said with their last heartbeat, and this one says now."""
    return {**await living(pod.commands, pod.keys, "pods"), pod.id: pod.summary()}


async def _of_tenant(pod: Pod, pod_ids: list[str], tenant_id: str) -> dict[str, Any]:
    try:
        check_id(tenant_id, "tenant_id")
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None
    counts = await tenant_connections(pod.commands, pod.keys, pod_ids, tenant_id)
    return {
        "tenant_id": tenant_id,
        "connections": sum(counts.values()),
        "pods": [{"pod_id": pod_id, "connections": count} for pod_id, count in counts.items()],
        "answered_by": pod.id,
    }


def chat_stats_endpoint(pod: Pod) -> Endpoint:
    """``GET /api/chat/stats``."""

    async def chat_stats(_request: Request) -> Response:
        names = [pod.keys.actions(tier) for tier in TIERS]
        pods = await _pods(pod)
        routers = await living(pod.commands, pod.keys, "routers")
        lengths = await asyncio.gather(*[pod.queue.length(name) for name in names])
        return json_response(
            {
                "sends_accepted": sum(summary["sends_accepted"] for summary in pods.values()),
                "messages_delivered": sum(summary["delivered"] for summary in pods.values()),
                "queues": [
                    {"tier": tier, "queue_name": name, "actions": length}
                    for tier, name, length in zip(TIERS, names, lengths, strict=True)
                ],
                "routers": [{"router_id": router_id, **summary} for router_id, summary in routers.items()],
                "pods": len(pods),
                "answered_by": pod.id,
            }
        )

    return chat_stats
