"""What others make of the same bytes: the standard library's JSON, and the websockets library."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec

from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from gateway.frames import Binary, Close, Event, Ping, Pong, Text, TooLarge

P = ParamSpec("P")


class TooDeep(Exception):
    """It may be right, but the standard library cannot read it."""


def unless_too_deep(check: Callable[P, None]) -> Callable[P, None]:
    """Let pass what cannot be checked."""

    @functools.wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        with suppress(TooDeep):
            check(*args, **kwargs)

    return checked


def read_json(text: bytes) -> Any:
    """Strict JSON, as a browser reads it.

    Raises:
        AssertionError: it is not.
        TooDeep: nobody knows.
    """

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    try:
        return json.loads(text.decode(), parse_constant=constant, parse_int=_int)
    except RecursionError:
        raise TooDeep from None
    except ValueError as error:
        raise AssertionError(f"{error}: {text[:200]!r}") from None


def _int(digits: str) -> int | float:
    return int(digits) if len(digits.lstrip("-")) <= sys.int_info.default_max_str_digits else float(digits)


def read_loosely(raw: bytes) -> Any:
    """What the standard library makes of an input, if need be with wrong characters; None if nothing.

    Raises:
        TooDeep: nobody knows.
    """
    try:
        return json.loads(raw.decode("utf-8", "replace"), parse_int=_int)
    except ValueError:
        return None
    except RecursionError:
        raise TooDeep from None


def frame_events(stream: bytes, max_message: int) -> tuple[list[Event], bool]:
    """What the websockets library reads, as the decoder's events; and whether it took all of it as legal.

    It does not look at the text's UTF-8 here, nor at sizes and the shortest form of a length; and it refuses
    a close within a fragmented message.
    """
    other = ServerProtocol(state=State.OPEN, max_size=None)
    other.receive_data(stream)
    frames = [event for event in other.events_received() if isinstance(event, Frame)]
    return _assembled(frames, max_message), other.parser_exc is None


def _assembled(frames: list[Frame], max_message: int) -> list[Event]:
    """Frames as the decoder's events."""
    events: list[Event] = []
    text, content = False, b""
    for frame in frames:
        data = bytes(frame.data)
        if frame.opcode is Opcode.PING:
            events.append(Ping(data))
        elif frame.opcode is Opcode.PONG:
            events.append(Pong(data))
        elif frame.opcode is Opcode.CLOSE:
            events.append(Close(int.from_bytes(data[:2], "big") if data else None, data[2:].decode()))
        else:
            if frame.opcode is not Opcode.CONT:
                text, content = frame.opcode is Opcode.TEXT, b""
            content += data
            if frame.fin:
                size = len(content)
                kept = Text(content) if size <= max_message else TooLarge(size)
                events.append(kept if text else Binary(size))
    return events


_WITH_A_BODY = re.compile(rb"(?mi)^(content-length|transfer-encoding):")
_STRICTER = re.compile("invalid (Connection|Upgrade|Sec-WebSocket-(Extensions|Protocol)) header")
"""What it refuses for list elements that are empty, or mean nothing to a server without extensions."""


def accept_key(request: bytes) -> str | None:
    """The key with which the websockets library accepts an upgrade request; None if it is too large for it.

    Raises:
        AssertionError: it does not accept it.
    """
    other = ServerProtocol()
    other.receive_data(request)
    received = next(iter(other.events_received()), None)
    if received is None:
        if _WITH_A_BODY.search(request):
            return None
        assert len(request) > 8192 or request.count(b"\r\n") > 128, other.handshake_exc
        return None
    response = other.accept(received)  # type: ignore[arg-type]  # a server is told of requests first
    if response.status_code != 101 and _STRICTER.match(str(other.handshake_exc)):
        return None
    assert response.status_code == 101, other.handshake_exc
    return response.headers["Sec-WebSocket-Accept"]
