"""The rival in the benchmark: the whole job written the plain way, without a log.

A router that takes callbacks one by one (BRPOP) and publishes them; Starlette pods on redis-py's pub/sub. It
keeps none of the promises; it is what the price of keeping them is compared with.

    python -m benchmarks.naive router|pod --redis-port N [--port N] [--tenants N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import redis.asyncio
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def route(redis_port: int, tenants: int) -> None:
    """Take callbacks one by one, publish each."""
    client = redis.asyncio.Redis(port=redis_port, socket_timeout=None)
    lists = [f"orchestrator:tenant-{n}:callbacks" for n in range(tenants)]
    while True:
        taken: Any = await client.brpop(lists)
        callback = json.loads(taken[1])
        message = {
            "type": "agent_response",
            "task_id": callback["task_id"],
            "session_id": callback["session_id"],
            "tenant_id": callback["tenant_id"],
            "data": callback["result"],
            "metadata": {"execution_time": callback["execution_time"]},
        }
        await client.publish(f"session:{callback['tenant_id']}:{callback['session_id']}", json.dumps(message))


def build_pod(redis_port: int) -> Starlette:
    """A pod: sockets by channel, one subscription."""
    sockets: dict[str, WebSocket] = {}
    client = redis.asyncio.Redis(port=redis_port)
    pubsub = client.pubsub()
    reading: list[asyncio.Task[None]] = []
    subscribing = asyncio.Lock()

    async def read() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                socket = sockets.get(message["channel"].decode())
                if socket is not None:
                    await socket.send_text(message["data"].decode())

    async def endpoint(socket: WebSocket) -> None:
        channel = f"session:{socket.query_params['tenant_id']}:{socket.path_params['session_id']}"
        await socket.accept()
        sockets[channel] = socket
        async with subscribing:
            await pubsub.subscribe(channel)
            if not reading:
                reading.append(asyncio.create_task(read()))
        await socket.send_text(json.dumps({"type": "connection_ack"}))
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            sockets.pop(channel, None)

    async def readyz(_request: Request) -> Response:
        return Response(b"{}")

    return Starlette(routes=[Route("/readyz", readyz), WebSocketRoute("/ws/{session_id}", endpoint)])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("router", "pod"))
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tenants", type=int, default=50)
    arguments = parser.parse_args()
    if arguments.kind == "router":
        uvloop.run(route(arguments.redis_port, arguments.tenants))
    else:
        uvicorn.run(
            build_pod(arguments.redis_port),
            port=arguments.port,
            log_level="error",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            backlog=4096,
        )


if __name__ == "__main__":
    main()
