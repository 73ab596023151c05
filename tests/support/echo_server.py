"""A server that echoes, for conformance tests of the WebSocket side by itself.

Everything that RFC 6455 speaks of is the product's: uvicorn with `bounded_protocol`, the handshake, the frame
decoder, and `Connection` with its ways to close. Only the endpoint is a stand-in, without sessions and Redis:
it lets everybody in and sends each text message back. A binary message is told to be ignored, as by the
product, and so is a text message over the limit; but however many come, the socket stays open.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from backplane.settings import Settings
from gateway import frames, handshake
from gateway.connection import Connection
from gateway.http_protocol import bounded_protocol
from gateway.problem import problem_body
from gateway.websocket_endpoint import WebSocketEndpoint
from tests.support.processes import Process, free_port

BINARY_REFUSED = b"a binary message of %d bytes was ignored"
TOO_LARGE_REFUSED = b"a text message of %d bytes was ignored"


class EchoConversation:
    """Stands in for `gateway.conversation.Conversation`."""

    def on_text(self, connection: Connection, data: bytes) -> None:
        """Send it back."""
        connection.write(frames.encode_text(data))

    def on_bad_frame(self, connection: Connection, event: frames.Binary | frames.TooLarge) -> None:
        """Tell the client that its message was not kept."""
        told = BINARY_REFUSED if isinstance(event, frames.Binary) else TOO_LARGE_REFUSED
        connection.write(frames.encode_text(told % event.size))


class EchoEndpoint:
    """Stands in for `WebSocketEndpoint`; has what a `Connection` without a session asks of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.conversation = EchoConversation()
        self.tick = 0
        self.closed_by_code: dict[int, int] = {}
        self.connections = self  # it is what all sockets share, too

    async def open(self, connection: Connection, head: bytes) -> None:
        """Accept whatever is an upgrade request."""
        try:
            request = handshake.parse(head)
        except handshake.HandshakeError as error:
            body = problem_body(error.status, error.error_code, error.detail)
            connection.refuse(handshake.refuse_response(error.status, list(error.headers), body))
            return
        decoder = frames.FrameDecoder(self.settings.message_max_bytes, self.settings.skip_max_bytes)
        connection.accept(handshake.accept_response(request, None), decoder)

    def on_opened(self, task: asyncio.Task[None]) -> None:
        """The task of a handshake has ended."""
        if not task.cancelled():
            task.result()

    def on_client_close(self, connection: Connection, code: int) -> None:
        """Answer the client's Close, as the product does once it has noted what was sent."""
        connection.finish(code)

    def on_gone(self, connection: Connection) -> None:
        """The transport is closed."""

    def count_close(self, code: int) -> None:
        """Count why sockets are closed."""
        self.closed_by_code[code] = self.closed_by_code.get(code, 0) + 1


async def _not_found(_scope: Any, _receive: Any, send: Any) -> None:
    """All that there is beside the sockets."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def serve(port: int, settings: Settings) -> None:
    """Serve until a signal."""
    endpoint = EchoEndpoint(settings)

    def new_connection(**_uvicorn: Any) -> Connection:
        return Connection(cast("WebSocketEndpoint", endpoint))

    config = uvicorn.Config(
        _not_found,
        port=port,
        ws=new_connection,  # type: ignore[arg-type]  # it is only called
        http=bounded_protocol(settings.handshake_timeout_s),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve()


class EchoServer(Process):
    """The server as a process on a port of its own.

    Args:
        folder: for its log.
        limits: flags of `main`, as keywords.
    """

    def __init__(self, folder: Path, **limits: int) -> None:
        self.port = free_port()
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
        command = [sys.executable, "-m", "tests.support.echo_server", f"--port={self.port}", *flags]
        super().__init__(command, {}, folder / "echo_server.log")

    def ready(self) -> bool:
        """Whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def main() -> None:
    """Serve, from the command line."""
    parser = argparse.ArgumentParser(description="Echo text messages over WebSocket.")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--message-max-bytes", type=int, default=Settings().message_max_bytes)
    parser.add_argument("--skip-max-bytes", type=int, default=Settings().skip_max_bytes)
    given = parser.parse_args()
    settings = Settings(message_max_bytes=given.message_max_bytes, skip_max_bytes=given.skip_max_bytes)
    uvloop.run(serve(given.port, settings))


if __name__ == "__main__":
    main()
