"""``/ws/stats`` and ``/api/chat/stats``: for the whole cluster, from what its processes say of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from backplane.connection_counts import tenant_connections
from backplane.keys import TIERS
from backplane.presence import Summary, living
from gateway.errors import ClientError
from gateway.http import Endpoint, bearer_token, json_response, query
from gateway.identity import check_scope, check_tenant
from gateway.pod import Pod


def ws_stats_endpoint(pod: Pod) -> Endpoint:
    """``GET /ws/stats``; with ``?tenant_id=``, or for a tenant's token, the connections of one tenant."""

    async def ws_stats(request: Request) -> Response:
        tenant_id = await _whose(pod, request, query(request).get("tenant_id"))
        pods = await _pods(pod)
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


async def _whose(pod: Pod, request: Request, tenant_id: str | None) -> str | None:
    grant = await pod.authenticator.grant(bearer_token(request))
    check_scope(grant, "stats")
    return check_tenant(grant, tenant_id)


async def _pods(pod: Pod) -> dict[str, Summary]:
    """What the pods said with their last heartbeat, and this one says now."""
    return {**await living(pod.commands, pod.keys, "pods"), pod.id: pod.summary()}


async def _of_tenant(pod: Pod, pod_ids: list[str], tenant_id: str) -> dict[str, Any]:
    found = await tenant_connections(pod.commands, pod.keys, tenant_id)
    counts = {pod_id: found.get(pod_id, 0) for pod_id in pod_ids}
    return {
        "tenant_id": tenant_id,
        "connections": sum(counts.values()),
        "pods": [{"pod_id": pod_id, "connections": count} for pod_id, count in counts.items()],
        "answered_by": pod.id,
    }


def chat_stats_endpoint(pod: Pod) -> Endpoint:
    """``GET /api/chat/stats``: of the whole cluster, so for no tenant's token."""

    async def chat_stats(request: Request) -> Response:
        if await _whose(pod, request, None) is not None:
            raise ClientError(403, "forbidden", "these are for operators; a tenant's are at /ws/stats")
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
