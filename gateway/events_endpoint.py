"""``/api/chat/sessions/{session_id}/events``: a session's messages as Server-Sent Events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backplane.errors import NotYours
from backplane.session_log import Resumed
from backplane.trace_context import read_trace
from gateway.chat import check_depth
from gateway.errors import redis_unavailable, session_taken
from gateway.event_request import EventRequest, read_request
from gateway.event_start import EventStart, Start
from gateway.event_stream import EventStream
from gateway.http import read_body
from gateway.http_protocol import BoundedHttpProtocol, connection_of
from gateway.listener import State
from gateway.open_connections import OpenConnections
from gateway.opening import Opening

if TYPE_CHECKING:
    from gateway.pod import Pod

PATH = "/api/chat/sessions/{session_id}/events"
RESUME_PATH = f"{PATH}/{{chat_id}}/stream"
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventsEndpoint:
    """Opens event streams."""

    def __init__(self, connections: OpenConnections, opening: Opening, start: EventStart) -> None:
        self._connections = connections
        self._settings = connections.settings
        self._opening = opening
        self._start = start

    async def open(self, request: Request) -> Response:
        """Judge a request and, if it is right, attach a stream to its session.

        Raises:
            ClientError: it is not right.
            RedisUnavailable: Redis did not answer.
        """
        asked = read_request(request)
        connection = connection_of(request.scope)
        stream = EventStream(self._connections, connection.peer, chunked=asked.chunked)
        stream.trace = read_trace(*map(request.headers.get, ("traceparent", "tracestate")))
        response: Response | None = None
        try:
            response = await self._let_in(request, asked, connection, stream)
        except NotYours:
            raise session_taken() from None
        except TimeoutError:
            raise redis_unavailable() from None
        finally:
            if not isinstance(response, _HandOver):
                stream.abandon()
        return response

    async def _let_in(
        self, request: Request, asked: EventRequest, connection: BoundedHttpProtocol, stream: EventStream
    ) -> Response:
        settings = self._settings
        async with asyncio.timeout(settings.handshake_timeout_s):
            await self._opening.knock(stream, asked.forwarded)
            identity = await self._opening.identify(stream, asked.token, asked.stated)
        body = None
        if request.method == "POST":
            body = await read_body(request, settings)
            check_depth(body, settings.json_depth_max)
        async with asyncio.timeout(settings.handshake_timeout_s):
            await self._opening.join(stream, identity)
            start = await self._start.find(request, asked, identity, body)
            if start is None:
                return Response(status_code=204)
            stream.wants_chunks = start.chunks
            stream.marks = start.marks
            await self._opening.attach(
                stream, identity, start.cursor, _accept(connection, stream, start), start.has, start.reread
            )
        return _HandOver(connection, stream, start)


class _HandOver(Response):
    """The head of a stream, and then the transport is the stream's own."""

    def __init__(self, connection: BoundedHttpProtocol, stream: EventStream, start: Start) -> None:
        super().__init__(headers={**_HEADERS, **dict(start.headers)})
        del self.headers["Content-Length"]
        self._connection = connection
        self._stream = stream

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            self._connection.begin_stream(scope)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._connection.hand_over(self._stream)
        finally:
            self._stream.abandon()  # nothing, once it was handed over


def events_routes(pod: Pod) -> list[Route]:
    """The routes."""

    async def events(request: Request) -> Response:
        return await pod.event_streams.open(request)

    routes = [Route(PATH, events, methods=["GET", "POST"]), Route(RESUME_PATH, events, methods=["GET"])]
    for route in routes:
        assert route.methods is not None
        route.methods.discard("HEAD")  # it would open a stream, and close it
    return routes


def _accept(connection: BoundedHttpProtocol, stream: EventStream, start: Start) -> Callable[[Resumed], bool]:
    def accept(resumed: Resumed) -> bool:
        if connection.transport.is_closing():
            return False
        stream.framing = start.framing(resumed)
        stream.state = State.OPEN
        return True

    return accept
