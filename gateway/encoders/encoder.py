"""What the event stream needs of an encoder: [P] pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol


class Encoder(Protocol):
    """Turns our messages, one after the other, into the Server-Sent Events of another protocol.

    One encoder is for one HTTP response. It does no I/O, knows no clock, holds a bounded state however long
    the stream, and raises on no message, whatever its data are.

    Attributes:
        name: what ``?format=`` calls it.
        media_type: what ``Accept`` calls it; only its parameter tells it from any other event stream.
        headers: what the response needs beside ``Content-Type: text/event-stream``.
        done: there is nothing more to say; send `finish` and close the response.
    """

    name: ClassVar[str]
    media_type: ClassVar[str]
    headers: tuple[tuple[str, str], ...]
    done: bool

    def encode(self, message: Mapping[str, Any], position: str | None) -> bytes:
        """The events of one message; nothing if the other protocol has no use for it.

        Args:
            message: a whole message of ours, decoded.
            position: ``epoch:seq`` of a message of the session log; None for one that is in no log.
        """
        ...

    def caught_up(self) -> bytes:
        """All that was said before this response began has been encoded: what follows is live."""
        ...

    def finish(self) -> bytes:
        """The end of a response that is closed in an orderly way, in the middle of an answer or after it."""
        ...
