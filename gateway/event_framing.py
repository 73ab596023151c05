"""How messages become Server-Sent Events on a connection: [P] pure.

The id of an event is a cursor, so that a browser's ``EventSource`` comes back with its place in the log by
itself. ``connection_ack`` has one too: it tells where the client stands, and without it a client that lost
its connection before the first message of the log would come back as a new one. Other messages have none,
and leave the client's as it is. ``event:`` is left out, so that ``onmessage`` gets all of them.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import msgspec

from backplane.messages import with_position
from gateway.encoders import sse
from gateway.encoders.encoder import Encoder

_FOR_EVER_MS = 86_400_000  # an EventSource comes back whatever it was told; only how soon can be said
_COMMENT = sse.comment()
_decode = msgspec.json.Decoder().decode


class EventFraming(Protocol):
    """A `gateway.framing.Framing`, and what else is said on an event stream.

    Attributes:
        done: nothing more will be said.
        cuts: whether a client that shall come back has to see its connection break: an end it would take for
            the end of the answer.
    """

    @property
    def done(self) -> bool: ...

    @property
    def cuts(self) -> bool: ...

    def message(self, payload: bytes) -> bytes:
        """See `gateway.framing.Framing`."""

    def log(self, epoch: str, first: int, entries: list[bytes]) -> bytes:
        """See `gateway.framing.Framing`."""

    def caught_up(self) -> bytes:
        """See `gateway.framing.Framing`."""

    def welcome(self, payload: bytes, cursor: str, retry_ms: int) -> bytes:
        """The ``connection_ack``.

        Args:
            retry_ms: after which a client should come back whose connection breaks.
        """

    def send_away(self, payload: bytes, after_ms: int) -> bytes:
        """The message that asks the client to come back after a while."""

    def beat(self) -> bytes:
        """What keeps the connection from looking dead."""

    def end(self, *, comes_back: bool) -> bytes:
        """The last that is written.

        Args:
            comes_back: whether the client shall.
        """


class Native:
    """Our messages as they are.

    Args:
        chunked: whether what is written has to be in chunks (RFC 9112, 7.1).
    """

    done = False
    cuts = False

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked

    def message(self, payload: bytes) -> bytes:
        return _written(b"data: %b\n\n" % payload, chunked=self._chunked)

    def log(self, epoch: str, first: int, entries: list[bytes]) -> bytes:
        name = epoch.encode()
        events = [
            b"id: %b:%d\ndata: %b\n\n" % (name, seq, with_position(entry, epoch, seq))
            for seq, entry in enumerate(entries, first)
        ]
        return _written(b"".join(events), chunked=self._chunked)

    def caught_up(self) -> bytes:
        return b""

    def welcome(self, payload: bytes, cursor: str, retry_ms: int) -> bytes:
        event = b"retry: %d\nid: %b\ndata: %b\n\n" % (retry_ms, cursor.encode(), payload)
        return _written(event, chunked=self._chunked)

    def send_away(self, payload: bytes, after_ms: int) -> bytes:
        return _written(b"retry: %d\ndata: %b\n\n" % (after_ms, payload), chunked=self._chunked)

    def beat(self) -> bytes:
        return _written(_COMMENT, chunked=self._chunked)

    def end(self, *, comes_back: bool) -> bytes:
        told = b"" if comes_back else b"retry: %d\n\n" % _FOR_EVER_MS
        return _ended(told, chunked=self._chunked)


NATIVE = Native(chunked=True)
NATIVE_PLAIN = Native(chunked=False)


class Encoded:
    """Another protocol's events, for one connection.

    Args:
        chunked: as of `Native`.
        told: the seq of the log behind which it begins.
        last: the seq behind which nothing will come for the client; None if something may.
    """

    cuts = True

    def __init__(self, encoder: Encoder, *, chunked: bool, told: int = 0, last: int | None = None) -> None:
        self._encoder = encoder
        self._chunked = chunked
        self._told = told
        self._last = last

    @property
    def done(self) -> bool:
        return self._encoder.done or (self._last is not None and self._told >= self._last)

    def message(self, payload: bytes) -> bytes:
        return _written(self._encoder.encode(_read(payload), None), chunked=self._chunked)

    def log(self, epoch: str, first: int, entries: list[bytes]) -> bytes:
        events = [
            self._encoder.encode(_read(with_position(entry, epoch, seq)), f"{epoch}:{seq}")
            for seq, entry in enumerate(entries, first)
        ]
        self._told = first + len(entries) - 1
        return _written(b"".join(events), chunked=self._chunked)

    def caught_up(self) -> bytes:
        return _written(self._encoder.caught_up(), chunked=self._chunked)

    def welcome(self, payload: bytes, _cursor: str, _retry_ms: int) -> bytes:
        # A comment in any case: a client shall see that it was let in before the agent says something.
        return _written(_COMMENT, chunked=self._chunked) + self.message(payload)

    def send_away(self, payload: bytes, _after_ms: int) -> bytes:
        return self.message(payload)

    def beat(self) -> bytes:
        return _written(_COMMENT, chunked=self._chunked)

    def end(self, *, comes_back: bool) -> bytes:
        del comes_back  # neither protocol has a word for it
        return _ended(self._encoder.finish(), chunked=self._chunked)


def _written(data: bytes, *, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if chunked and data else data


def _ended(data: bytes, *, chunked: bool) -> bytes:
    return _written(data, chunked=chunked) + b"0\r\n\r\n" if chunked else data


def _read(message: bytes) -> dict[str, Any]:
    """A message, decoded; an empty one if that cannot be: who reads after this one must not suffer for it."""
    try:
        found = _decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:  # what an agent sent was passed on as it came; half of a surrogate pair is JSON, too
            found = json.loads(message.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            found = None
    return found if isinstance(found, dict) else {}
