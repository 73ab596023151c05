"""A plain client for end-to-end tests, on the `websockets` library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import Pod

Message = dict[str, Any]


def open_socket(
    pod: Pod,
    session_id: str,
    *,
    tenant_id: str = "acme",
    cursor: str | None = None,
    headers: Mapping[str, str] | None = None,
    **query: str,
) -> ClientConnection:
    """Open a socket; use it as a context manager."""
    words = {"tenant_id": tenant_id, "tenant_tier": "free", "agent_id": "agent-1", **query}
    if cursor is not None:
        words["cursor"] = cursor
    url = f"ws://127.0.0.1:{pod.port}/ws/{session_id}?{urlencode(words)}"
    return connect(url, ping_interval=None, max_size=None, compression=None, additional_headers=headers)


def receive(socket: ClientConnection, timeout_s: float = 10.0) -> Message:
    """The next message."""
    message: Message = json.loads(socket.recv(timeout_s))
    return message


def receive_other(socket: ClientConnection, timeout_s: float = 10.0) -> Message:
    """The next message that is no echo of what a user said."""
    while (message := receive(socket, timeout_s))["type"] == "user_message":
        pass
    return message


def receive_ends(socket: ClientConnection, count: int, timeout_s: float = 10.0) -> list[Message]:
    """The next ``count`` messages of the log that an agent brought about."""
    found: list[Message] = []
    while len(found) < count:
        message = receive_other(socket, timeout_s)
        if "seq" in message["metadata"]:
            found.append(message)
    return found


def receive_logged(socket: ClientConnection, count: int, timeout_s: float = 10.0) -> list[Message]:
    """The next ``count`` messages of the session log; others are passed over."""
    found: list[Message] = []
    while len(found) < count:
        message = receive(socket, timeout_s)
        if "seq" in message["metadata"]:
            found.append(message)
    return found


def silent(socket: ClientConnection) -> bool:
    """Whether nothing of the log is on its way: all that comes before the answer to a ping is looked at."""
    socket.send('{"type": "ping", "ref": "silent?"}')
    while True:
        message = receive(socket)
        if message["type"] == "pong" and message["data"].get("ref") == "silent?":
            return True
        if "seq" in message["metadata"]:
            return False


def close_code(socket: ClientConnection, timeout_s: float = 10.0) -> int:
    """Read until the server closes; returns its code."""
    try:
        while True:
            socket.recv(timeout_s)
    except ConnectionClosed as closed:
        return 1006 if closed.rcvd is None else closed.rcvd.code
